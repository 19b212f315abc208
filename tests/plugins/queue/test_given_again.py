"""A job that a server gives again, at each moment of its life: every giving gets its answer."""

from __future__ import annotations

import asyncio
import json
import logging
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from tests.plugins.queue.conftest import OpenDoor, job, until
from tests.plugins.queue.old_server import EMPTY, Call, OldServer
from vellumd import JobFilter
from vellumd.daemon import Daemon
from vellumd_queue.journal import Journal
from vellumd_queue.plugin import ONLY

RESULT = "POST /api/queue/result"
GOOD, BAD = job(1), job(1, image="QUJD")


@pytest.fixture
def again(caplog: pytest.LogCaptureFixture, old: OldServer) -> Callable[..., Awaitable[None]]:
    """Give a job once more, and wait until the door has taken it over."""
    caplog.set_level("INFO")

    def taken() -> int:
        lines = [record.getMessage() for record in caplog.records]
        return sum("was given again" in line or "is refused" in line for line in lines)

    async def again(given: dict[str, Any] = GOOD) -> None:
        before = taken()
        old.offer(given)
        await until(lambda: taken() > before)

    return again


async def only_job(daemon: Daemon) -> str:
    """How the one job is; fails if there are several."""
    (found,) = (await daemon.jobs.list(JobFilter(), None)).jobs
    return found.status


async def nothing_more(daemon: Daemon, old: OldServer) -> None:
    """Wait until nothing is owed and the door asks for jobs again."""
    async with asyncio.timeout(15):
        while await daemon.jobs._store.pending_deliveries("queue"):
            await asyncio.sleep(0.01)
    polls = len(old.results("/api/queue/next"))
    await until(lambda: len(old.results("/api/queue/next")) >= polls + 3)


def same(calls: list[Call]) -> int:
    """How many results there are; fails if they differ."""
    assert len({call.body for call in calls}) == 1
    return len(calls)


async def test_while_it_waits(
    old: OldServer, open_door: OpenDoor, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """As a daemon finds it that was stopped in between: one answer comes after both givings."""
    async with open_door(url=old.url) as daemon:
        await daemon.executor.pause()
    folder = tmp_path / "data" / "plugins" / "queue"
    async with Journal(folder / "pulled.sqlite", logging.getLogger()) as journal:
        for _ in range(2):
            await journal.keep(ONLY, json.dumps(GOOD).encode())
    caplog.set_level("INFO")
    async with open_door(url=old.url) as daemon:
        await until(lambda: "was given again" in caplog.text)
        assert await only_job(daemon) == "queued"
        await daemon.executor.resume()
        await until(old.results)
        await nothing_more(daemon, old)
        assert await only_job(daemon) == "done"
    assert same(old.results()) == 1


async def test_while_it_runs(
    old: OldServer, open_door: OpenDoor, tmp_path: Path, again: Callable[..., Awaitable[None]]
) -> None:
    """However often its lease ran out meanwhile, one answer comes after all of that."""
    held = job(1, prompt="wait", num_steps=2)
    old.offer(held)
    async with open_door(url=old.url, engine={"ledger": str(tmp_path / "ledger")}) as daemon:
        for _ in range(2):
            await again(held)
        assert await only_job(daemon) == "running"
        (tmp_path / "go").touch()
        await until(old.results)
        await nothing_more(daemon, old)
        assert await only_job(daemon) == "done"
    assert same(old.results()) == 1
    assert len((tmp_path / "ledger").read_text().splitlines()) == 1


@pytest.mark.parametrize("given", [GOOD, BAD], ids=["done", "refused"])
async def test_while_its_answer_is_sent(
    given: dict[str, Any],
    old: OldServer,
    open_door: OpenDoor,
    again: Callable[..., Awaitable[None]],
) -> None:
    """The server has decided to take it and has not said so yet: it gets the same once more."""
    old.offer(given)
    held = old.holds[RESULT] = threading.Event()
    async with open_door(url=old.url) as daemon:
        await until(old.results)
        await again(given)
        assert len(old.results()) == 1
        held.set()
        await until(lambda: len(old.results()) == 2)
        await nothing_more(daemon, old)
    assert same(old.results()) == 2


async def test_while_it_is_noted_that_its_answer_was_taken(
    old: OldServer,
    open_door: OpenDoor,
    again: Callable[..., Awaitable[None]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The server has it and we have not written that down: twice given meanwhile, once more."""
    noting, go_on = asyncio.Event(), asyncio.Event()
    async with open_door(url=old.url) as daemon:
        settle = daemon.jobs._store.settle_delivery

        async def held(*how: Any) -> None:
            noting.set()
            await go_on.wait()
            await settle(*how)

        monkeypatch.setattr(daemon.jobs._store, "settle_delivery", held)
        old.offer(GOOD)
        async with asyncio.timeout(15):
            await noting.wait()
        for _ in range(2):
            await again()
        assert len(old.results()) == 1
        go_on.set()
        await until(lambda: len(old.results()) == 2)
        await nothing_more(daemon, old)
        assert await only_job(daemon) == "done"
    assert same(old.results()) == 2


async def test_while_its_answer_is_tried_again(
    old: OldServer, open_door: OpenDoor, again: Callable[..., Awaitable[None]]
) -> None:
    """The server refuses it for a while: it takes one answer for each of the two givings."""
    down = [True]
    taken: list[Call] = []

    def take(call: Call) -> tuple[int, dict[str, str], bytes]:
        if down:
            return 503, {"Retry-After": "0"}, b""
        taken.append(call)
        return 200, {}, b""

    old.rules[RESULT] = take
    old.offer(GOOD)
    async with open_door(url=old.url) as daemon:
        await until(old.results)
        await again()
        down.clear()
        await until(lambda: len(taken) == 2)
        await nothing_more(daemon, old)
    assert same(old.results()) > 2
    assert len(taken) == 2


async def test_while_its_answer_is_not_wanted_any_more(
    old: OldServer, open_door: OpenDoor, again: Callable[..., Awaitable[None]]
) -> None:
    """404 ends the giving that it answers, and not the one that came meanwhile."""
    answers = iter([(404, {}, b""), (200, {}, b"")])
    old.rules[RESULT] = lambda call: next(answers)
    held = old.holds[RESULT] = threading.Event()
    old.offer(GOOD)
    async with open_door(url=old.url) as daemon:
        await until(old.results)
        await again()
        held.set()
        await until(lambda: len(old.results()) == 2)
        await nothing_more(daemon, old)
    assert same(old.results()) == 2


async def test_after_its_answer_was_taken(
    old: OldServer, open_door: OpenDoor, again: Callable[..., Awaitable[None]]
) -> None:
    """Each giving gets the same bytes."""
    old.offer(GOOD)
    async with open_door(url=old.url) as daemon:
        for number in (1, 2, 3):
            await until(lambda number=number: len(old.results()) == number)
            await nothing_more(daemon, old)
            if number < 3:
                await again()
        assert await only_job(daemon) == "done"
    assert same(old.results()) == 3


async def test_between_two_daemons(
    old: OldServer,
    open_door: OpenDoor,
    again: Callable[..., Awaitable[None]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Taken by the server, given again, and the daemon ends before it notes either: the next
    one sends one answer, which comes after both givings.
    """
    async with open_door(url=old.url) as daemon:

        async def broken(*how: Any) -> None:
            raise OSError("the disk is gone")

        monkeypatch.setattr(daemon.jobs._store, "settle_delivery", broken)
        old.rules[RESULT] = lambda call: (200, {}, b"")
        old.offer(GOOD)
        await until(old.results)
        await again()
        old.rules["GET /api/queue/next"] = lambda call: EMPTY
    before = len(old.results())
    async with open_door(url=old.url) as daemon:
        await until(lambda: len(old.results()) > before)
        await nothing_more(daemon, old)
        assert await only_job(daemon) == "done"
    assert same(old.results()) == before + 1
