"""What the store's state looks like over HTTP: expired, full, read-only, rebuilt."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from vellumd.models import now_ms
from vellumd.store.retention import DAY_MS, Retention

from .conftest import EDIT, Door, OpenDoor, png


async def retention(door: Door, days: float) -> Retention:
    """The daemon's retention, that many days later."""
    jobs = door.daemon.jobs
    return Retention(
        jobs._store, jobs._spool, door.daemon.room, door.daemon.settings.store, {},
        lambda: now_ms() + round(days * DAY_MS),
    )  # fmt: skip


async def test_an_expired_job_is_410_and_then_404(door: Door) -> None:
    """On every route of the job, with the code; the list still shows that it was there."""
    job = await door.done()
    path = f"/v1/jobs/{job['id']}"
    await (await retention(door, 15)).once()
    for method, tail in (("GET", ""), ("GET", "/result"), ("GET", "/result/1"),
                         ("GET", "/inputs/1"), ("GET", "/events"), ("POST", "/retry")):  # fmt: skip
        body = await door.json(method, path + tail, 410)
        assert body["code"] == "expired", tail
    (listed,) = (await door.json("GET", "/v1/jobs"))["jobs"]
    assert listed["id"] == job["id"] and listed["request"] is None and listed["results"] == []
    await (await retention(door, 91)).once()
    assert (await door.json("GET", path, 404))["code"] == "not_found"


@pytest.mark.parametrize("sent", [False, True], ids=["never sent", "sent before"])
async def test_a_damaged_picture_is_410(door: Door, sent: bool) -> None:
    """Not passed on under the hash of what was stored, whole, in part or converted."""
    job = await door.done()
    folder = door.daemon.settings.store.dir / "spool" / job["id"]
    for tail, file in (("result", "result-1.png"), ("inputs/1", "input-1.png")):
        path = f"/v1/jobs/{job['id']}/{tail}"
        if sent:
            async with door.ask("GET", path) as got:
                assert got.status == 200
        stored = folder / file
        data = bytearray(stored.read_bytes())
        data[-20] ^= 1
        stored.write_bytes(data)
        for query, headers in (("", {}), ("", {"Range": "bytes=0-9"}), ("?format=jpeg", {})):
            if file.startswith("result") or not query:
                body = await door.json("GET", path + query, 410, headers=headers)
                assert body["code"] == "expired" and "damaged" in body["detail"]


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/jobs", {"json": EDIT}),
        ("/v1/inputs", {"data": png()}),
        ("/generate", {"json": EDIT}),
    ],
)
async def test_below_the_reserve_it_is_507(
    open_door: OpenDoor, tmp_path: Path, path: str, body: dict[str, Any]
) -> None:
    """With Retry-After; the daemon stays ready, since edits go on."""
    core = {"store": {"dir": tmp_path / "data", "reserve_gb": 10**9}}
    async with open_door(core=core) as door:
        async with door.ask("POST", path, **body) as got:
            assert got.status == 507 and int(got.headers["Retry-After"]) == 60
            assert (await got.json())["code"] == "storage_full"
        assert (await door.json("GET", "/v1/jobs"))["jobs"] == []


async def test_a_folder_that_cannot_be_written_is_not_ready(
    door: Door, monkeypatch: pytest.MonkeyPatch
) -> None:
    """/readyz is 503 and says why, intake is refused, /healthz stays."""
    await door.done()
    assert (await door.json("GET", "/readyz"))["status"] == "ready"
    monkeypatch.setattr(door.daemon.room, "_writable", lambda folder: False)
    assert "cannot be written" in (await door.json("GET", "/readyz", 503))["reason"]
    await door.json("POST", "/v1/jobs", 503, json=EDIT)
    await door.json("GET", "/healthz")


async def test_a_rebuilt_store_is_shown(open_door: OpenDoor, tmp_path: Path) -> None:
    """The damaged file is kept, the job is there with its result, and /readyz warns."""
    async with open_door() as door:
        job = await door.done()
    (tmp_path / "data" / "jobs.sqlite").write_bytes(b"no database" * 1000)
    async with open_door() as door:
        again = await door.json("GET", f"/v1/jobs/{job['id']}")
        assert (again["status"], again["results"]) == ("done", job["results"])
        await door.done()
        body = await door.json("GET", "/readyz")
        assert [warning["code"] for warning in body["warnings"]] == ["store_rebuilt"]
        assert list((tmp_path / "data").glob("jobs.sqlite.damaged-*"))
