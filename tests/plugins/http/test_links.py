"""Links to results."""

from __future__ import annotations

from datetime import UTC, datetime
from urllib.parse import parse_qs, urlsplit

from vellumd import Job, JobStatus, models
from vellumd_http.links import Links

RESULT = models.Result(n=2, type="image/png", bytes=3, sha256="b" * 64, width=30, height=20, seed=4)
JOB = Job(
    id="job", status=JobStatus.DONE, model="demo", source="http", created=datetime.now(UTC),
    results=(RESULT,),
)  # fmt: skip


def test_a_link_opens_its_result_and_no_other() -> None:
    """The token belongs to job, number and secret."""
    links = Links("https://pics.example/v/", "secret")
    url = urlsplit(links.public(JOB)["results"][0]["url"])
    token = parse_qs(url.query)["t"][0]
    assert (url.netloc, url.path) == ("pics.example", "/v/r/job/2")
    assert links.opens("job", 2, token)
    assert not links.opens("job", 1, token)
    assert not links.opens("joc", 2, token)
    assert not links.opens("job", 2, "")
    assert not links.opens("job", 2, "ä")
    assert not Links("https://pics.example", "other").opens("job", 2, token)


def test_without_a_public_address_there_are_no_links() -> None:
    """No answer holds a URL, and no token opens anything."""
    links = Links(None, "")
    assert links.public(JOB) == JOB.public()
    assert "url" not in links.public(JOB)["results"][0]
    assert not links.opens("job", 2, links.token("job", 2))
