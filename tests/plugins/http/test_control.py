"""The switches: pause and resume, unload and load, a job's priority; and what tells of them."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from .conftest import EDIT, PNG, Door, OpenDoor, b64, png


async def ready_as(door: Door, state: str) -> dict[str, Any]:
    """The body of /readyz once it is 200 in this state of the engine."""
    async with asyncio.timeout(20):
        while True:
            async with door.ask("GET", "/readyz") as got:
                body: dict[str, Any] = await got.json()
            if (got.status, body["state"]) == (200, state):
                return body
            await asyncio.sleep(0.01)


async def test_pause_and_resume(door: Door) -> None:
    """Paused is ready and says so; jobs are accepted and wait; resumed they are done."""
    await ready_as(door, "ready")
    told = await door.json("POST", "/v1/queue/pause")
    assert told["queue"] == {"queued": 0, "running": 0, "held": "paused"}
    assert (await ready_as(door, "ready"))["queue"] == "paused"
    assert (await door.json("GET", "/v1/capabilities"))["queue"]["held"] == "paused"
    job = await door.json("POST", "/v1/jobs", 202, json=EDIT, headers={"Prefer": "wait=1"})
    assert job["status"] == "queued"
    assert (await door.json("POST", "/v1/queue/resume"))["queue"]["held"] == ""
    path = f"/v1/jobs/{job['id']}"
    ended = await door.json("GET", path, headers={"Prefer": "wait=30"})
    assert ended["status"] == "done"
    assert (await ready_as(door, "ready"))["queue"] == "open"


async def test_what_is_held_says_so_and_not_when(door: Door) -> None:
    """The page tells it; nobody knows when a job ends that does not start."""
    await door.done()
    await door.json("POST", "/v1/queue/pause")
    async with door.ask("GET", "/") as got:
        assert "The queue is paused" in await got.text()
    job = await door.json("POST", "/v1/jobs", 202, json=EDIT)
    assert (job["position"], job["eta_s"]) == (0, None)
    (listed,) = (await door.json("GET", "/v1/jobs?status=queued"))["jobs"]
    assert listed["eta_s"] is None


async def test_unload_and_load(door: Door) -> None:
    """Unloaded is ready and says so, also as the predecessor said it; a load brings it back."""
    await ready_as(door, "ready")
    assert (await door.json("GET", "/health"))["model_loaded"] is True
    await door.json("POST", "/v1/engine/unload", 202)
    assert "unloaded" in (await ready_as(door, "unloaded"))["reason"]
    engine = (await door.json("GET", "/v1/capabilities"))["engine"]
    assert (engine["ready"], engine["loaded"]) == (True, False)
    health = await door.json("GET", "/health")
    assert (health["status"], health["model_loaded"]) == ("ok", False)
    await door.json("POST", "/v1/engine/load", 202)
    await ready_as(door, "ready")
    await door.json("POST", "/v1/engine/unload", 202)
    await ready_as(door, "unloaded")
    assert (await door.done())["status"] == "done"


async def test_a_full_disk_is_not_ready(open_door: OpenDoor, tmp_path: Path) -> None:
    """No result can be made, so no balancer shall send more; the reason is told."""
    (tmp_path / "full").touch()
    async with open_door(engine={"ledger": str(tmp_path / "ledger")}) as door:
        await door.json("POST", "/v1/jobs", 202, json=EDIT)
        async with asyncio.timeout(20):
            while (told := await door.json("GET", "/readyz", None))["queue"] != "storage_full":
                await asyncio.sleep(0.01)
        assert told["status"] == "not ready" and "disk" in told["reason"]
        await door.json("GET", "/readyz", 503)


async def test_an_engine_that_cannot_load_keeps_jobs(open_door: OpenDoor) -> None:
    """A missing model is 503 with the reason at once; what was accepted is not lost."""
    async with open_door(engine={"load_error": "model_missing"}) as door:
        async with asyncio.timeout(20):
            while (await door.json("GET", "/readyz", 503))["state"] != "failed":
                await asyncio.sleep(0.01)
        job = await door.json("POST", "/v1/jobs", 202, json=EDIT)
        await door.json("POST", "/v1/engine/load", 202)
        assert (await door.json("GET", f"/v1/jobs/{job['id']}"))["status"] == "queued"


async def test_a_priority_moves_a_waiting_job(door: Door) -> None:
    """PATCH puts it before the others, and its position says so."""
    await door.json("POST", "/v1/queue/pause")
    pictures = [PNG, png(color="navy")]
    jobs = [
        await door.json("POST", "/v1/jobs", 202, json={**EDIT, "images": [b64(picture)]})
        for picture in pictures
    ]
    assert [job["position"] for job in jobs] == [0, 1]
    path = f"/v1/jobs/{jobs[1]['id']}"
    moved = await door.json("PATCH", path, json={"priority": 10})
    assert (moved["position"], moved["request"]["priority"]) == (0, 10)
    assert (await door.json("GET", f"/v1/jobs/{jobs[0]['id']}"))["position"] == 1
    refused = await door.json("PATCH", path, 400, json={"priority": 101})
    assert refused["code"] == "bad_request"
    await door.json("POST", "/v1/queue/resume")
    ended = await door.json("GET", path, headers={"Prefer": "wait=30"})
    assert ended["status"] == "done"
    assert (await door.json("PATCH", path, 400, json={"priority": 1}))["code"] == "bad_request"


@pytest.mark.parametrize("path", ["/v1/queue/pause", "/v1/engine/unload"])
async def test_switches_are_no_links(door: Door, path: str) -> None:
    """A GET, as a page or a crawler sends it, switches nothing."""
    assert (await door.json("GET", path, 405))["code"] == "bad_request"
