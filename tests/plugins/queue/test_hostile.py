"""Jobs that would break the door, and a folder in which things went missing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.plugins.queue.conftest import OpenDoor, job, png, until
from tests.plugins.queue.old_server import OldServer
from vellumd import EditRequest, ImageRef, errors
from vellumd_queue import mapping
from vellumd_queue.mapping import GarbageError
from vellumd_queue.names import SPELLINGS
from vellumd_queue.plugin import MapSettings

TEXTS = (
    st.text(max_size=20)
    | st.text(st.characters(categories=["Cs"]), max_size=3)
    | st.sampled_from(
        ["9" * 5000, "٣", "/9j/", "/x", "http://[/", "http://x/\0", "data:image/png;base64,"]
    )
)
NAMES = st.sampled_from([*SPELLINGS, "id"]) | TEXTS
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3),
    max_leaves=6,
)
MAPS = [
    MapSettings(),
    MapSettings(fields={"prompt": "a.b", "steps": "num_steps", "images": "images.0"}),
]


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.dictionaries(NAMES, VALUES, max_size=6), st.sampled_from(MAPS))
def test_any_json_is_a_job_or_is_refused(fields: dict[str, object], names: MapSettings) -> None:
    """Nothing else is ever raised on the way from an answer to a request."""
    try:
        found = mapping.find_job(json.dumps({"id": 1, **fields}).encode(), names)
        if found is None:
            return
        order = mapping.read_order(found, names)
        for picture in order.pictures:
            if mapping.picture_url(picture, "http://x") is None:
                mapping.decode_picture(picture)
        image = ImageRef(sha256="0" * 64, width=1, height=1)
        request = EditRequest.parse(mapping.request_of(order, [image], None))
        assert request.digest() and request.model_dump_json().encode()
        for encode in (mapping.as_json, lambda m, f: mapping.as_form(m, f, "image/png")):
            assert encode(names, mapping.failed(names, order.id, "x", "\ud800"))[0]
    except (GarbageError, errors.VellumError):
        pass


async def test_poison_is_refused_and_others_are_done(old: OldServer, open_door: OpenDoor) -> None:
    """The door never falls over a job: it would fall again at each start."""
    poison = [
        job(1, prompt="\ud800"),
        job(2, num_steps="9" * 5000),
        job(3, image="http://[/"),
        job(4, image=f"{old.url}/\ud800"),
        job(5, seed=10**300),
        job(6, width=[1] * 9000, height="\0"),
        job("\ud800"),
    ]
    for one in poison:
        old.offer(one)
    old.offer(job("good"))
    async with open_door(url=old.url) as daemon:
        await until(lambda: any(call.json["id"] == "good" for call in old.results()))
        assert not daemon.info()["transports"]["queue"]["crashes"]
    told = {call.json["id"]: call.json["status"] for call in old.results()}
    assert told == {**dict.fromkeys(range(1, 7), "failed"), "good": "done"}


@pytest.mark.parametrize("harm", ["removed", "damaged"])
async def test_a_result_that_is_gone_is_told(
    harm: str, old: OldServer, open_door: OpenDoor, tmp_path: Path
) -> None:
    """Another picture's bytes never go out, and the server does not give the job for ever."""
    old.offer(job(1))
    old.rules["POST /api/queue/result"] = lambda call: (500, {"Retry-After": "1"}, b"")
    async with open_door(url=old.url):
        await until(old.results)
    (result,) = (tmp_path / "data").rglob("result-1.*")
    if harm == "removed":
        result.unlink()
    else:
        result.write_bytes(result.read_bytes()[:-1] + b"x")
    del old.rules["POST /api/queue/result"]
    async with open_door(url=old.url):
        await until(lambda: old.results()[-1].json["status"] == "failed")
    assert old.results()[-1].json["code"] == "expired"


async def test_a_damaged_journal_is_set_aside(
    old: OldServer, open_door: OpenDoor, tmp_path: Path
) -> None:
    """The door goes on with a new one, and the old one is kept for whoever wants to look."""
    async with open_door(url=old.url):
        pass
    (journal,) = (tmp_path / "data").rglob("pulled.sqlite")
    journal.write_bytes(b"not a database" * 1000)
    old.offer(job(1))
    async with open_door(url=old.url):
        await until(old.results)
    assert len(list(journal.parent.glob("pulled.sqlite.damaged-*"))) == 1


async def test_a_job_of_an_older_map_waits_for_it(
    old: OldServer, open_door: OpenDoor, caplog: pytest.LogCaptureFixture
) -> None:
    """What was pulled is not lost by a change of the configuration, nor does it stop the door."""
    old.rules["GET /1.png"] = lambda call: (503, {"Retry-After": "60"}, b"")
    old.offer(job(1, image="/1.png"))
    async with open_door(url=old.url):
        await until(lambda: old.results("/1.png"))
    async with open_door(url=old.url, map={"job": "data"}):
        await until(lambda: "cannot be read with the new map" in caplog.text)
    old.rules["GET /1.png"] = lambda call: (200, {}, png())
    async with open_door(url=old.url):
        await until(old.results)
    assert old.results()[0].json["status"] == "done"
