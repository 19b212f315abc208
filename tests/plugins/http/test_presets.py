"""Presets over HTTP: saved once, there for every door and after a restart."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from urllib.parse import quote

from .conftest import EDIT, Door, OpenDoor

SNOW = {"prompt": "make it snow", "steps": 3, "output": {"format": "jpeg"}}


async def save(door: Door, name: str, options: Any, status: int = 201) -> Any:
    return await door.json("PUT", f"/v1/presets/{quote(name)}", status, json=options)


async def test_saving_using_deleting(door: Door) -> None:
    """201 then 200; listed with its origin; usable without a prompt; gone after DELETE."""
    made = await save(door, "snow 1", SNOW)
    assert made == {"name": "snow 1", "origin": "saved", "usable": True, "options": SNOW}
    assert await save(door, "snow 1", made["options"], 200) == made
    assert await door.json("GET", "/v1/presets/snow%201") == made
    listed = await door.json("GET", "/v1/presets")
    assert [(one["name"], one["origin"]) for one in listed["presets"]] == [
        ("fastest", "shipped"), ("balanced", "shipped"), ("original", "shipped"),
        ("snow 1", "saved"),
    ]  # fmt: skip
    capabilities = await door.json("GET", "/v1/capabilities")
    assert capabilities["presets"]["snow 1"] == SNOW
    assert listed["default"] == capabilities["default_preset"]
    job = await door.done({"images": EDIT["images"], "preset": "snow 1"})
    assert (job["request"]["prompt"], job["request"]["steps"]) == ("make it snow", 3)
    assert job["results"][0]["type"] == "image/jpeg"
    async with door.ask("DELETE", "/v1/presets/snow%201") as got:
        assert got.status == 204
    gone = {"images": EDIT["images"], "preset": "snow 1"}
    assert (await door.json("POST", "/v1/jobs", 400, json=gone))["code"] == "unknown_preset"
    assert (await door.json("GET", "/v1/presets/snow%201", 404))["code"] == "not_found"


async def test_jobs_keep_what_their_preset_said(door: Door) -> None:
    """A preset changed or deleted while its job waits changes nothing for it."""
    await save(door, "snow", SNOW)
    await door.json("POST", "/v1/queue/pause")
    asked = {"images": EDIT["images"], "preset": "snow"}
    job = await door.json("POST", "/v1/jobs", 202, json=asked)
    await save(door, "snow", {"prompt": "other"}, 200)
    async with door.ask("DELETE", "/v1/presets/snow") as got:
        assert got.status == 204
    await door.json("POST", "/v1/queue/resume")
    ended = await door.json("GET", f"/v1/jobs/{job['id']}", headers={"Prefer": "wait=30"})
    assert ended["status"] == "done" and ended["request"] == job["request"]
    again = await door.json("POST", f"/v1/jobs/{job['id']}/retry", 202)
    assert again["request"]["prompt"] == "make it snow"


async def test_presets_outlive_the_daemon_and_its_database(
    open_door: OpenDoor, tmp_path: Path
) -> None:
    """They lie beside it: a database made again from the jobs' folders takes none away."""
    async with open_door() as door:
        await save(door, "snow", SNOW)
        await door.done({"images": EDIT["images"], "preset": "snow"})
    for file in (tmp_path / "data").glob("jobs.sqlite*"):
        file.write_bytes(b"not a database")
    async with open_door() as door:
        assert door.daemon.rebuilt is not None
        assert (await door.json("GET", "/v1/presets/snow"))["options"] == SNOW


REFUSED = [
    ("PUT", "snow", {"stepz": 3}, 400, "bad_request"),
    ("PUT", "snow", {"tier": "fast"}, 400, "unknown_tier"),
    ("PUT", "snow", {"loras": [{"name": "other"}]}, 400, "unknown_lora"),
    ("PUT", "snow", {"size": "x"}, 400, "bad_size"),
    ("PUT", "snow", [], 400, "bad_request"),
    ("PUT", "a%2Fb", {}, 400, "bad_request"),
    ("PUT", "balanced", SNOW, 403, "preset_fixed"),
    ("DELETE", "balanced", None, 403, "preset_fixed"),
    ("DELETE", "other", None, 404, "not_found"),
]


async def test_refusals(door: Door) -> None:
    """Each with its code; an unknown field with the nearest one."""
    for method, name, body, status, code in REFUSED:
        data = None if body is None else json.dumps(body)
        told = await door.json(method, f"/v1/presets/{name}", status, data=data)
        assert told["code"] == code
        assert body != {"stepz": 3} or "the nearest is steps" in told["detail"]


async def test_the_default_is_not_rewritten(open_door: OpenDoor) -> None:
    """What everybody gets who names none is the configuration's to say, once it is there."""
    async with open_door({"engine": {"name": "paper", "preset": "house"}}) as door:
        await save(door, "house", SNOW)
        told = await save(door, "house", {"prompt": "other"}, 403)
        assert told["code"] == "preset_fixed"
        assert (await door.json("GET", "/v1/presets/house"))["options"] == SNOW
