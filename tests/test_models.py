"""Requests, ids and digests: what every door relies on."""

from __future__ import annotations

import json
import threading
import uuid
from typing import Any

import pytest

from vellumd import errors
from vellumd.models import EditRequest, ImageRef, Job, JobStatus, moment, new_job_id

PICTURE = ImageRef(sha256="a" * 64, width=64, height=48, name="a.png")


def request(**fields: Any) -> EditRequest:
    return EditRequest.parse({"images": [PICTURE], "prompt": "red", **fields})


def test_ids_are_uuid7_and_strictly_increase() -> None:
    """Also when many threads ask at once, no two are equal and each sees them grow."""
    seen: list[list[str]] = [[] for _ in range(4)]

    def ask(mine: list[str]) -> None:
        mine.extend(new_job_id() for _ in range(2000))

    threads = [threading.Thread(target=ask, args=[mine]) for mine in seen]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(mine == sorted(mine) for mine in seen)
    assert len({job_id for mine in seen for job_id in mine}) == 8000
    parsed = uuid.UUID(seen[0][0])
    assert parsed.version == 7 and parsed.variant == uuid.RFC_4122


@pytest.mark.parametrize(
    ("alias", "name", "value"),
    [
        ("num_steps", "steps", 8),
        ("num_inference_steps", "steps", 8),
        ("cfg", "true_cfg_scale", 3.0),
    ],
)
def test_aliases_mean_the_same_everywhere(alias: str, name: str, value: object) -> None:
    """A field under an alias is that field, also in the digest."""
    assert getattr(request(**{alias: value}), name) == value
    assert request(**{alias: value}).digest() == request(**{name: value}).digest()


def test_one_image_stands_for_a_list() -> None:
    """`image` with a single picture is `images` with one."""
    assert EditRequest.parse({"image": PICTURE, "prompt": "red"}) == request()


def test_minus_one_asks_for_a_random_seed() -> None:
    """As in other tools."""
    assert request(seed=-1).seed is None


def test_the_digest_is_of_the_edit_not_of_names() -> None:
    """A picture's file name does not matter, its bytes and every option do."""
    renamed = PICTURE.model_copy(update={"name": "b.png"})
    assert request().digest() == request(images=[renamed]).digest()
    other = PICTURE.model_copy(update={"sha256": "b" * 64})
    changes: list[dict[str, Any]] = [
        {"images": [other]}, {"images": [PICTURE, PICTURE]}, {"prompt": "blue"}, {"seed": 1},
        {"mask": PICTURE}, {"n": 2}, {"meta": 1}, {"preset": "fastest"}, {"client_id": "x"},
    ]  # fmt: skip
    assert len({request(**change).digest() for change in [{}, *changes]}) == len(changes) + 1


@pytest.mark.parametrize("size", ["match", "auto", "fit:2", "fit:0.5", "1024x768"])
def test_sizes_that_can_be_made(size: str) -> None:
    """The four forms of a size."""
    assert request(size=size).size == size


@pytest.mark.parametrize("size", ["", "fit:", "fit:0", "fit:99", "8x8", "9000x16", "1024 x 768"])
def test_sizes_that_cannot(size: str) -> None:
    """Each is bad_size."""
    with pytest.raises(errors.BadSize):
        request(size=size)


def test_an_error_names_the_field_not_the_value() -> None:
    """Secrets that were put into a wrong field do not come back in the answer."""
    with pytest.raises(errors.BadRequest) as caught:
        request(steps="hunter2")
    assert "steps" in str(caught.value) and "hunter2" not in json.dumps(caught.value.public())


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ({"stepz": 4}, "stepz: there is no such field; the nearest is steps."),
        (
            {"output": {"qualty": 4}},
            "output.qualty: there is no such field; the nearest is output.",
        ),
        ({"steps": 4, "num_steps": 4}, "num_steps: is given under two names."),
        ({"loras": ["lightning-8"]}, "loras.0: must be an object."),
    ],
)
def test_an_error_says_what_was_meant(asked: dict[str, Any], told: str) -> None:
    """A wrong name gets the right one, in the words of senders and not of our classes."""
    with pytest.raises(errors.BadRequest) as caught:
        EditRequest.parse({"images": [PICTURE], "prompt": "red", **asked})
    assert caught.value.message.startswith(told)


@pytest.mark.parametrize("field", ["prompt", "negative_prompt", "batch", "client_id"])
def test_no_text_holds_nul(field: str) -> None:
    """On every door a NUL is a bad request that names its field."""
    with pytest.raises(errors.BadRequest, match=f"{field}: must not hold a NUL"):
        EditRequest.parse({"images": [PICTURE], "prompt": "x", field: "a\0b"})


def test_a_job_is_shown_in_rfc3339() -> None:
    """Times in UTC with milliseconds."""
    job = Job(id="j", status=JobStatus.QUEUED, model="m", source="s", created=moment(1500))
    assert job.public()["created"] == "1970-01-01T00:00:01.500Z"
