"""Who follows other doors' jobs: owed each of them from its acceptance on, over every crash."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, aclosing
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from tests.jobs_on_disk import NAME, OnDisk, ask, opened, paint
from vellumd import Delivery, EditRequest, TransportContext, TransportSpec, errors, plugins
from vellumd.daemon import Daemon
from vellumd.jobs import JobFilter
from vellumd.models import Job
from vellumd.settings import Settings

Picture = Callable[..., bytes]
Run = Callable[..., AbstractAsyncContextManager[Daemon]]


async def finish(disk: OnDisk, picture: bytes, source: str = "mqtt", **fields: Any) -> Job:
    """A job of `source` that is done."""
    job = await disk.jobs.submit(await ask(disk.jobs, picture, 1), source, **fields)
    assert await disk.jobs.claim(0)
    await disk.jobs.done(job.id, (paint(disk.spool.folder(job.id), picture),), 1.5, ())
    return job


async def owed(disk: OnDisk, source: str) -> list[tuple[str, Any]]:
    """Jobs and replies that a door is owed now."""
    return [(row.job_id, row.reply) for row in await disk.store.pending_deliveries(source)]


async def test_a_follower_is_owed_what_it_wants(tmp_path: Path, picture: Picture) -> None:
    """By source and any other filter, once for each of its replies, and beside the sender."""
    async with opened(tmp_path) as disk:
        disk.jobs.follow("hook", JobFilter(), "all")
        disk.jobs.follow("hook", JobFilter(source="mqtt", client_id="me"), "some")
        disk.jobs.follow("hook", JobFilter(client_id="you"), "none")
        disk.jobs.follow("hook", JobFilter(source="mqtt"), "all")
        disk.jobs.follow("hook", JobFilter(), "all")
        ours = await finish(disk, picture(), reply="own")
        other = await finish(disk, picture(), "http")
        assert await owed(disk, "hook") == [(ours.id, "all"), (ours.id, "some"), (other.id, "all")]
        assert await owed(disk, "mqtt") == [(ours.id, "own")]


async def test_a_follower_cannot_ask_for_the_future(tmp_path: Path) -> None:
    """How a job ends is not known when it comes; and replies are small."""
    async with opened(tmp_path) as disk:
        with pytest.raises(ValueError, match="how a job will end"):
            disk.jobs.follow("hook", JobFilter(status="done"), 1)  # type: ignore[arg-type]
        with pytest.raises(errors.BadRequest):
            disk.jobs.follow("hook", JobFilter(), "x" * 5000)


async def test_what_a_follower_is_owed_is_accepted_with_the_job(
    tmp_path: Path, picture: Picture
) -> None:
    """A daemon that dies right after the commit owes it, though nobody follows any more."""
    async with opened(tmp_path) as disk:
        disk.jobs.follow("hook", JobFilter(), {"target": "a"})
        job = await finish(disk, picture())
    async with opened(tmp_path) as disk:
        assert await owed(disk, "hook") == [(job.id, {"target": "a"})]


async def test_a_rebuilt_store_owes_followers_too(tmp_path: Path, picture: Picture) -> None:
    """request.json tells who followed."""
    async with opened(tmp_path) as disk:
        disk.jobs.follow("hook", JobFilter(), {"target": "a"})
        job = await finish(disk, picture(), reply="own")
    for file in (NAME, f"{NAME}-wal", f"{NAME}-shm"):
        (tmp_path / file).unlink(missing_ok=True)
    async with opened(tmp_path) as disk:
        assert await owed(disk, "hook") == [(job.id, {"target": "a"})]
        assert await owed(disk, "mqtt") == [(job.id, "own")]


async def test_a_follower_does_not_keep_a_job_from_being_deleted(
    tmp_path: Path, picture: Picture
) -> None:
    """Who deletes a job wants it gone; its own sender's answer is waited for all the same."""
    async with opened(tmp_path) as disk:
        disk.jobs.follow("hook", JobFilter(), 1)
        plain = await finish(disk, picture())
        answered = await finish(disk, picture(), reply="own")
        await disk.jobs.delete(plain.id)
        with pytest.raises(errors.NotDone):
            await disk.jobs.delete(answered.id)
        assert await owed(disk, "hook") == [(answered.id, 1)]


async def test_telling_a_follower_is_no_delivery_to_the_sender(
    tmp_path: Path, picture: Picture
) -> None:
    """Without retention, a result that waits to be fetched is there for its hour."""
    async with opened(tmp_path, retention_days=0) as disk:
        disk.jobs.follow("hook", JobFilter(), 1)
        job = await finish(disk, picture(), "http")
        (row,) = await disk.store.pending_deliveries("hook")
        await disk.store.settle_delivery(row.number, "delivered", None, 0)
        await disk.retention().once()
        assert (await disk.jobs.get(job.id)).id == job.id
        await disk.retention(1.01 / 24).once()
        with pytest.raises(errors.Expired):
            await disk.jobs.get(job.id)


async def test_an_answer_is_out_once_at_a_time(tmp_path: Path, picture: Picture) -> None:
    """Who asks again meanwhile gets one more when it is settled, however often they asked."""
    async with opened(tmp_path) as disk, asyncio.timeout(15):
        job = await finish(disk, picture(), reply="own", key="k")
        async with aclosing(disk.jobs.deliveries.of("mqtt")) as deliveries:
            first = await anext(deliveries)
            for _ in range(3):
                await disk.jobs.submit(
                    await ask(disk.jobs, picture(), 1), "mqtt", key="k", reply="own"
                )
            other = await finish(disk, picture(), reply="own")
            assert (await anext(deliveries)).job.id == other.id
            await first.delivered()
            again = await anext(deliveries)
            assert (again.job.id, again.reply, again.attempts) == (job.id, "own", 0)
            await again.delivered()
        assert await owed(disk, "mqtt") == [(other.id, "own")]


class Section(BaseModel):
    """No settings."""


class Eager:
    """A door that submits a job in the first moment of its life."""

    def __init__(self, context: TransportContext, picture: bytes) -> None:
        self.context, self.picture = context, picture

    async def run(self) -> None:
        image = await self.context.stage(self.picture)
        await self.context.jobs.submit(EditRequest(images=(image,), prompt="now", preset="fastest"))
        self.context.report(True, "submitted")
        await asyncio.Event().wait()


class Follower:
    """A door that follows the others, crashes, and puts each delivery off twice."""

    got: list[Delivery]

    def __init__(self, context: TransportContext) -> None:
        self.context = context
        context.follow(reply="mine")

    async def run(self) -> None:
        self.context.report(True, "follows")
        async with aclosing(self.context.deliveries()) as deliveries:
            async for delivery in deliveries:
                self.got.append(delivery)
                await (delivery.retry(0) if delivery.attempts < 2 else delivery.delivered())


async def test_a_door_that_follows_in_its_factory_misses_no_job(
    make_settings: Callable[..., Settings], picture: Picture, tmp_path: Path
) -> None:
    """Not even one of a door that is opened before it; attempts are counted."""
    Follower.got = []
    settings = make_settings()
    loaded = plugins.load(settings.enabled_plugins())
    loaded.transports["eager"] = TransportSpec(
        "eager", Section, lambda context: Eager(context, picture())
    )
    loaded.transports["follower"] = TransportSpec("follower", Section, Follower)
    async with Daemon(settings, loaded).running(), asyncio.timeout(20):
        while len(Follower.got) < 3:
            await asyncio.sleep(0.01)
    assert [(d.job.source, d.reply, d.attempts) for d in Follower.got] == [
        ("eager", "mine", n) for n in range(3)
    ]
    with contextlib.closing(sqlite3.connect(tmp_path / "data" / NAME)) as database:
        states = database.execute("SELECT source, state FROM deliveries").fetchall()
    assert states == [("follower", "delivered")]
