"""Jobs as a daemon has them, without one: real database, real folders, no engine."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import JsonValue

from vellumd import errors, platform
from vellumd.events import EventBus
from vellumd.jobs import Jobs
from vellumd.model_card import ModelCard
from vellumd.models import EditRequest, Job, Result, now_ms
from vellumd.settings import Settings, StoreSettings
from vellumd.store import room
from vellumd.store.retention import DAY_MS, Retention
from vellumd.store.room import Room
from vellumd.store.spool import Spool, sha256_of
from vellumd.store.store import Store

NAME = "jobs.sqlite"


@dataclass
class OnDisk:
    """A data folder in use."""

    folder: Path
    settings: StoreSettings
    store: Store
    spool: Spool
    room: Room
    jobs: Jobs

    def retention(self, after_days: float = 0, **give_up_s: float) -> Retention:
        """Retention as it will be `after_days` from now."""
        ahead = round(after_days * DAY_MS)
        now = lambda: now_ms() + ahead  # noqa: E731
        return Retention(self.store, self.spool, self.room, self.settings, give_up_s, now)

    async def finish(self, picture: bytes, n: int, *, reply: JsonValue = None) -> Job:
        """A job that is done, with a result as large as its input."""
        job = await self.jobs.submit(await ask(self.jobs, picture, n), "test", reply=reply)
        assert await self.jobs.claim(0)
        result = paint(self.spool.folder(job.id), picture)
        await self.jobs.done(job.id, (result,), 1.5, ())
        return await self.jobs.get(job.id)


@asynccontextmanager
async def opened(
    folder: Path,
    *,
    commit: Callable[[sqlite3.Connection], None] = sqlite3.Connection.commit,
    write: Callable[[Path, bytes], None] = platform.write_durably,
    free: Callable[[Path], int] = room.disk_free,
    writable: Callable[[Path], bool] = room.writable,
    **store_settings: Any,
) -> AsyncIterator[OnDisk]:
    """The jobs of a data folder, as the daemon opens them; closed as a clean stop does."""
    settings = Settings(store=StoreSettings(dir=folder, **store_settings))
    bus, spool = EventBus(), Spool(folder / "spool", settings.limits, write)
    store = await Store.open(folder / NAME, bus.publish, commit, spool)
    gate = Room(spool.root, spool.usage, settings.store, free, writable)
    jobs = Jobs(settings, ModelCard(name="demo"), store, spool, bus, gate)
    try:
        yield OnDisk(folder, settings.store, store, spool, gate, jobs)
    finally:
        await store.close()


async def ask(jobs: Jobs, picture: bytes, n: int) -> EditRequest:
    """Request number `n`."""
    image = await jobs.staging.put(picture, f"photo {n}.png")
    return EditRequest.parse(
        {
            "images": [image],
            "prompt": f"make it {n}",
            "preset": "original",
            "seed": n,
            "batch": f"b{n % 3}",
            "priority": n % 5,
            "client_id": "me",
            "meta": {"n": n},
        }
    )


async def fill(disk: OnDisk, picture: bytes, count: int) -> list[Job]:
    """Jobs of every status: done, failed, cancelled, running, queued in turn."""
    jobs, made = disk.jobs, []
    for n in range(count):
        request = await ask(jobs, picture, n)
        made.append(await jobs.submit(request, "test", key=f"k{n}", reply={"to": n}))
    for n in range(count * 4 // 5):
        job = await jobs.claim(0)
        assert job
        if n % 4 == 0:
            await jobs.done(job.id, (paint(disk.spool.folder(job.id), picture),), 1.5, ())
        elif n % 4 == 1:
            await jobs.failed(job.id, errors.BadOutput("Black."))
        elif n % 4 == 2:
            await jobs.failed(job.id, errors.Cancelled("Not wanted."))
    return [await jobs.get(job.id) for job in made]


def paint(folder: Path, picture: bytes) -> Result:
    """A result as the engine leaves it."""
    (folder / "result-1.png").write_bytes(picture)
    result = Result(
        n=1, type="image/png", bytes=len(picture), sha256=sha256_of(folder / "result-1.png"),
        width=64, height=48, seed=1,
    )  # fmt: skip
    body = {"results": [result.model_dump()], "elapsed_s": 1.5}
    (folder / "result.json").write_text(json.dumps(body))
    return result
