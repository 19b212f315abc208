"""The predecessor's door over real sockets."""

from __future__ import annotations

import asyncio
import base64
import errno
import io
import json
import os
from pathlib import Path
from typing import Any

import pytest
from aiohttp import FormData
from PIL import Image

from .conftest import EDIT, PNG, Door, OpenDoor, b64


@pytest.mark.parametrize("type", ["application/json", "text/plain", None])
async def test_json_of_any_type_is_answered_with_the_picture(door: Door, type: str | None) -> None:
    """As the predecessor's clients send it."""
    headers = {"Content-Type": type} if type else {}
    body = {**EDIT, "num_steps": 8, "true_cfg_scale": 3.0}
    skip = ["Content-Type"] if type is None else None
    async with door.ask(
        "POST", "/generate", data=json.dumps(body).encode(), headers=headers, skip_auto_headers=skip
    ) as got:
        assert (got.status, got.content_type) == (200, "application/json")
        answer = await got.json()
    assert Image.open(io.BytesIO(base64.b64decode(answer["image"]))).format == "PNG"
    assert (answer["width"], answer["height"], answer["seed"]) == (48, 32, 7)
    assert answer["elapsed"] >= 0
    assert "images" not in answer


async def test_the_readmes_first_curl(door: Door) -> None:
    """A form with a file and `Accept: image/png` gives the bytes."""
    form = FormData()
    form.add_field("images", PNG, filename="photo.jpg")
    form.add_field("prompt", "make it blue")
    async with door.ask("POST", "/generate", data=form, headers={"Accept": "image/png"}) as got:
        assert (got.status, got.content_type) == (200, "image/png")
        assert Image.open(io.BytesIO(await got.read())).size == (48, 32)


async def test_a_browsers_form_shows_the_picture(door: Door) -> None:
    """A navigation wants something to look at, whatever image types it lists."""
    form = FormData()
    form.add_field("images", PNG, filename="photo.png")
    form.add_field("prompt", "make it blue")
    headers = {"Accept": "text/html,application/xhtml+xml,*/*;q=0.8", "Origin": door.url}
    async with door.ask("POST", "/generate", data=form, headers=headers) as got:
        assert got.content_type == "image/png"
        assert got.headers["Content-Disposition"].startswith("inline")


async def test_what_runs_is_what_was_asked(door: Door) -> None:
    """Aliases, size, preset by steps; unknown fields are told, not refused."""
    body = {
        "image": b64(PNG), "prompt": "x", "num_steps": 28, "cfg": 4, "width": 64, "height": 48,
        "n": 2, "strength": 0.5,
    }  # fmt: skip
    answer = await door.json("POST", "/generate", json=body)
    assert [warning["code"] for warning in answer["warnings"]][-1] == "unknown_field"
    assert "strength" in answer["warnings"][-1]["message"]
    assert len(answer["images"]) == 2
    assert answer["images"][0] == answer["image"]
    asked = (await door.json("GET", f"/v1/jobs/{answer['job_id']}"))["request"]
    assert (asked["preset"], asked["size"], asked["n"]) == ("original", "64x48", 2)
    assert (asked["steps"], asked["true_cfg_scale"]) == (28, 4)


async def test_a_full_disk_is_507(door: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where it is only the job's id that finds no room; afterwards the same is accepted."""

    def full(path: Path, *_: object, **__: object) -> int:
        path.touch()
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", full)
        answer = await door.json("POST", "/generate", 507, json=EDIT)
        assert answer["code"] == "storage_full"
    assert list((door.daemon.settings.store.dir / "plugins/http/unanswered").iterdir()) == []
    await door.json("POST", "/generate", json=EDIT)


async def test_legacy_size_auto_gives_the_old_size_back(open_door: OpenDoor) -> None:
    """Only where neither size nor width and height are given."""
    async with open_door(legacy_size="auto") as door:
        answer = await door.json("POST", "/generate", json=EDIT)
        asked = (await door.json("GET", f"/v1/jobs/{answer['job_id']}"))["request"]
        assert asked["size"] == "auto"


async def test_errors_are_told_in_the_old_form(door: Door) -> None:
    """`detail` and `code`; a failed edit has its error's status."""
    answer = await door.json("POST", "/generate", 400, json={"prompt": "x", "images": "@"})
    assert answer.keys() == {"detail", "code"}
    answer = await door.json("POST", "/generate", 500, json={**EDIT, "prompt": "fail"})
    assert answer.keys() == {"detail", "code"}
    assert "passwd" not in json.dumps(answer)


async def test_health_in_the_old_form(door: Door) -> None:
    """Status, model and whether it is loaded."""
    await door.done()
    answer = await door.json("GET", "/health")
    assert answer == {"status": "ok", "model": door.daemon.card.name, "model_loaded": True}


@pytest.mark.parametrize("path", ["/generate", "/v1/images/edits"])
async def test_a_stop_tells_who_waits_to_come_again(open_door: OpenDoor, path: str) -> None:
    """Its edit is kept: the same request to the next daemon joins it."""
    async with open_door() as door, asyncio.TaskGroup() as tasks:
        await door.json("POST", "/v1/queue/pause")
        waiting = tasks.create_task(door.json("POST", path, 503, json=EDIT))
        wait = {"Prefer": "wait=60"}
        polling = tasks.create_task(door.json("POST", "/v1/jobs", 202, json=EDIT, headers=wait))
        while len(await jobs(door)) < 2:
            await asyncio.sleep(0.01)
        door.daemon.stop()
        answer = await waiting
        assert answer.get("error", answer)["code"] == "engine_unavailable"
        assert (await polling)["status"] == "queued"
    async with open_door() as door:
        await door.json("POST", "/v1/queue/resume")
        await door.json("POST", path, json=EDIT)
        assert len(await jobs(door)) == 2


async def jobs(door: Door) -> list[str]:
    return [job["id"] for job in (await door.json("GET", "/v1/jobs"))["jobs"]]


async def leave_early(door: Door, edit: dict[str, Any]) -> str:
    """Send an edit, hang up as soon as it is a job, and name the job, which starts then."""
    await door.json("POST", "/v1/queue/pause")
    before = set(await jobs(door))
    body = json.dumps(edit).encode()
    reader, writer = await asyncio.open_connection("127.0.0.1", door.port)
    head = f"POST /generate HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"
    writer.write(head.encode() + body)
    async with asyncio.timeout(20):
        while not (new := set(await jobs(door)) - before):
            await asyncio.sleep(0.01)
    writer.transport.abort()
    del reader
    await door.json("POST", "/v1/queue/resume")
    return new.pop()


async def test_a_vanished_caller_cancels_nothing_and_finds_the_answer(open_door: OpenDoor) -> None:
    """The job goes on; the same body gets it; after that it is a new job."""
    async with open_door(engine={"step_s": 0.05}) as door:
        left = await leave_early(door, EDIT)
        answer = await door.json("POST", "/generate", json=EDIT)
        assert answer["job_id"] == left
        other = await door.json("POST", "/generate", json={**EDIT, "prompt": "else"})
        assert other["job_id"] != left
        again = await door.json("POST", "/generate", json=EDIT)
        assert again["job_id"] != left


async def test_an_answer_made_meanwhile_is_kept(open_door: OpenDoor) -> None:
    """Also when the edit ended before the caller came back."""
    async with open_door(engine={"step_s": 0.02}) as door:
        left = await leave_early(door, EDIT)
        done = await door.json("GET", f"/v1/jobs/{left}", headers={"Prefer": "wait=30"})
        assert done["status"] == "done"
        assert (await door.json("POST", "/generate", json=EDIT))["job_id"] == left
        assert len(await jobs(door)) == 1


async def test_a_restart_forgets_no_unreceived_answer(open_door: OpenDoor) -> None:
    """The same body attaches to the job of the daemon before."""
    async with open_door(engine={"step_s": 0.02}) as door:
        left = await leave_early(door, EDIT)
    async with open_door() as door:
        assert (await door.json("POST", "/generate", json=EDIT))["job_id"] == left


async def test_equal_bodies_at_once_share_a_job(open_door: OpenDoor) -> None:
    """Retrying clients do not multiply the work."""
    async with open_door() as door, asyncio.timeout(30):
        await door.json("POST", "/v1/queue/pause")
        listeners = door.daemon.bus._listeners
        before = len(listeners)
        async with asyncio.TaskGroup() as tasks:
            asked = [tasks.create_task(door.json("POST", "/generate", json=EDIT)) for _ in range(8)]
            while len(listeners) < before + len(asked):  # until all wait for the job
                await asyncio.sleep(0.01)
            await door.json("POST", "/v1/queue/resume")
        assert len({task.result()["job_id"] for task in asked}) == 1


async def test_a_failure_is_told_once(door: Door) -> None:
    """The next equal body is tried anew."""
    edit = {**EDIT, "prompt": "fail"}
    for _ in range(2):
        await door.json("POST", "/generate", 500, json=edit)
    assert len(await jobs(door)) == 2
