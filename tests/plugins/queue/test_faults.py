"""What old servers do to their workers, fault by fault."""

from __future__ import annotations

import asyncio
import itertools
import sqlite3
import statistics
import threading
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from tests.plugins.queue.conftest import PATIENT, QUICK, OpenDoor, b64, job, png, until
from tests.plugins.queue.old_server import EMPTY, Answer, Call, OldServer
from vellumd import JobFilter, JobStatus
from vellumd.daemon import Daemon
from vellumd_queue.backoff import Backoff, Pace
from vellumd_queue.gate import SOON_S

LONG_S = 0.6
"""Seconds in which a door that wants to pulls a dozen times."""


def door_of(daemon: Daemon) -> dict[str, object]:
    """How the door says that it is."""
    door: dict[str, object] = daemon.info()["transports"]["queue"]
    return door


def pauses(times: list[float]) -> list[float]:
    """Seconds from each to the next."""
    return [later - earlier for earlier, later in itertools.pairwise(times)]


async def all_jobs(daemon: Daemon) -> list[str]:
    """Ids of the daemon's jobs."""
    return [job.id for job in (await daemon.jobs.list(JobFilter(), None)).jobs]


BROKEN: dict[str, Answer] = {
    "500": (500, {}, b"broken"),
    "503": (503, {"Retry-After": "0"}, b""),
    "redirect": (302, {"Location": "/api/queue/next?login"}, b""),
    "html": (200, {"Content-Type": "text/html"}, b"<!doctype html><p>Log in"),
    "garbage": (200, {}, b"\xff\xfe\x00"),
    "wrong schema": (200, {}, b'{"jobs": [1, 2]}'),
    "too much": (200, {}, b'["' + b"A" * (PATIENT.job + 1) + b'"]'),
    "unauthorized": (401, {}, b""),
}


async def test_a_broken_answer_is_survived(old: OldServer, open_door: OpenDoor) -> None:
    """Whatever the server says once, the next job is done; no redirect is followed."""
    broken: list[str] = []

    def answer(call: Call) -> Answer:
        return BROKEN[broken.pop()] if broken else old.usual(call)

    old.rules["GET /api/queue/next"] = answer
    async with open_door(url=old.url):
        for number, kind in enumerate(BROKEN, start=1):
            broken.append(kind)
            await until(lambda: not broken)
            old.offer(job(kind))
            await until(lambda number=number: len(old.results()) == number)
    assert [(call.json["id"], call.json["status"]) for call in old.results()] == [
        (kind, "done") for kind in BROKEN
    ]
    assert not any("login" in call.query for call in old.calls)


async def test_a_silent_server_holds_up_no_other(open_door: OpenDoor) -> None:
    """One server takes connections and says nothing, the other is served meanwhile."""
    writers: list[asyncio.StreamWriter] = []
    silent = await asyncio.start_server(lambda _, writer: writers.append(writer), "127.0.0.1", 0)
    url = f"http://127.0.0.1:{silent.sockets[0].getsockname()[1]}"
    other = OldServer()
    try:
        for id in range(3):
            other.offer(job(id))
        servers = {"silent": {"url": url}, "other": {"url": other.url}}
        async with open_door(servers=servers, bounds=QUICK):
            await until(lambda: len({call.json["id"] for call in other.results()}) == 3)
    finally:
        other.close()
        silent.close()
        for writer in writers:
            writer.close()


async def test_a_slow_answer_ends(old: OldServer, open_door: OpenDoor) -> None:
    """An answer that drips for ever is hung up on, and asked for again."""
    began: list[float] = []
    clock = asyncio.get_running_loop().time

    async def drip(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        began.append(clock())
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
        try:
            while len(began) < 3:
                writer.write(b" ")
                await writer.drain()
                await asyncio.sleep(0.05)
        except ConnectionError:
            pass
        finally:
            writer.close()

    dripping = await asyncio.start_server(drip, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{dripping.sockets[0].getsockname()[1]}"
    async with open_door(url=url, bounds=replace(QUICK, total_s=0.4)):
        await until(lambda: len(began) >= 2)
    began.append(0.0)
    dripping.close()
    assert began[1] - began[0] > 0.4 - 0.05  # it connected before it began to drip


async def test_a_dead_server_is_one_line(
    old: OldServer, open_door: OpenDoor, caplog: pytest.LogCaptureFixture
) -> None:
    """Down and up again are a line each, however many polls fail."""
    caplog.set_level("INFO")
    alive = [False]
    dead: Answer = (503, {"Retry-After": "0"}, b"")
    old.rules["GET /api/queue/next"] = lambda call: EMPTY if alive else dead
    alive.clear()
    async with open_door(url=old.url) as daemon:
        await until(lambda: len(old.calls) >= 6)
        assert not door_of(daemon)["ok"]
        assert "answers 503" in str(door_of(daemon)["text"])
        alive.append(True)
        await until(lambda: door_of(daemon)["ok"])
    lines = [r.getMessage() for r in caplog.records if old.url in r.getMessage()]
    assert len(lines) == 3, lines


async def test_a_result_is_posted_until_it_is_taken(old: OldServer, open_door: OpenDoor) -> None:
    """Byte-identical each time."""
    refusals = [500, 503, 400, 401, 302]
    statuses = iter([*refusals, 200])
    old.rules["POST /api/queue/result"] = lambda call: (next(statuses), {"Retry-After": "0"}, b"")
    old.offer(job())
    async with open_door(url=old.url):
        await until(lambda: len(old.results()) > len(refusals))
    assert len({call.body for call in old.results()}) == 1


async def test_a_result_that_is_never_taken_delays_no_other(
    old: OldServer, open_door: OpenDoor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One is too large for the server and waits for an hour, the others are there before."""
    monkeypatch.setattr(Backoff, "pause", lambda self, retry_after=None: 3600.0)
    old.rules["POST /api/queue/result"] = lambda call: (
        (413, {}, b"") if call.json["id"] == "large" else (200, {}, b"")
    )
    old.offer(job("large"))
    async with open_door(url=old.url):
        await until(old.results)
        for id in range(3):
            old.offer(job(id))
        await until(lambda: len(old.results()) == 4)
    assert [call.json["id"] for call in old.results()] == ["large", 0, 1, 2]


ENDS = {
    200: "delivered",
    204: "delivered",
    409: "delivered",
    404: "undeliverable",
    410: "undeliverable",
}


async def test_what_ends_a_delivery(old: OldServer, open_door: OpenDoor, tmp_path: Path) -> None:
    """Taken, taken before, or not wanted any more: then it is not posted again."""
    old.rules["POST /api/queue/result"] = lambda call: (call.json["id"], {}, b"")
    for status in ENDS:
        old.offer(job(status))
    async with open_door(url=old.url):
        await until(lambda: len(old.results()) == len(ENDS))
        await asyncio.sleep(LONG_S)
    with closing(sqlite3.connect(tmp_path / "data" / "jobs.sqlite")) as store:
        rows = store.execute("SELECT state FROM deliveries ORDER BY number").fetchall()
    assert [state for (state,) in rows] == list(ENDS.values())
    assert [call.json["id"] for call in old.results()] == list(ENDS)


async def test_the_same_job_again_gets_the_stored_result(
    old: OldServer, open_door: OpenDoor
) -> None:
    """However its picture travels; it is edited once."""
    old.rules["GET /1.png"] = lambda call: (200, {}, png())
    again = [
        {},
        {"lease": 2},
        {"image": f"data:image/png;base64,{b64(png())}"},
        {"image": "/1.png"},
    ]
    async with open_door(url=old.url) as daemon:
        for number, changed in enumerate(again, start=1):
            old.offer(job(1, **changed))
            await until(lambda number=number: len(old.results()) == number)
        assert len(await all_jobs(daemon)) == 1
    assert len({call.body for call in old.results()}) == 1


async def test_a_job_that_ended_long_ago_is_answered_again(
    old: OldServer, open_door: OpenDoor
) -> None:
    """Its result is owed from when it is asked for, not from its end days before."""
    days_ago = "UPDATE jobs SET created = created - :d, started = started - :d, ended = ended - :d"
    async with open_door(url=old.url) as daemon:
        old.offer(job(1))
        await until(lambda: len(old.results()) == 1)
        await daemon.jobs._store.run(lambda tx: tx.execute(days_ago, {"d": 2 * 86_400_000}))
        old.offer(job(1))
        await until(lambda: len(old.results()) == 2)
        await until_silent(old)
        assert len(await all_jobs(daemon)) == 1
    assert len({call.body for call in old.results()}) == 1


async def until_silent(old: OldServer) -> None:
    """Wait for three more polls, so that what was on its way has come."""
    polls = len(old.results("/api/queue/next"))
    await until(lambda: len(old.results("/api/queue/next")) >= polls + 3)


async def test_the_same_id_with_other_content_is_a_new_job(
    old: OldServer, open_door: OpenDoor
) -> None:
    """Also if only the picture behind the URL is another one."""
    pictures = [png("red"), png("teal")]
    old.rules["GET /1.png"] = lambda call: (200, {}, pictures.pop())
    contents = [{"prompt": "other"}, {}, {"image": "/1.png"}, {"image": "/1.png"}]
    async with open_door(url=old.url) as daemon:
        for number, changed in enumerate(contents, start=1):
            old.offer(job(1, **changed))
            await until(lambda number=number: len(old.results()) == number)
        # png() is teal: of the four, two are the same.
        assert len(await all_jobs(daemon)) == 3
        await until_silent(old)
    assert len(old.results()) == len(contents), "each is answered once"


async def test_a_server_that_repeats_itself_is_not_asked_in_a_loop(
    old: OldServer, open_door: OpenDoor
) -> None:
    """The same job, and one that is refused, count as no news."""
    again = iter([job(1), *[job(1), job(2, image="QUJD")] * 50])
    times: list[float] = []

    def next_job(call: Call) -> Answer:
        times.append(time.monotonic())
        old.offer(next(again))
        return old.usual(call)

    old.rules["GET /api/queue/next"] = next_job
    async with open_door(url=old.url, pace=Pace(idle_s=0.2)):
        await until(lambda: len(times) >= 6)
    assert statistics.median(pauses(times[1:])) > 0.18  # one call may be noted late


async def test_a_picture_that_fails_for_a_while_is_waited_for(
    old: OldServer, open_door: OpenDoor
) -> None:
    """The job is not lost and not refused."""
    answers: list[Answer] = [(200, {}, png()), (503, {"Retry-After": "0"}, b"")]
    old.rules["GET /1.png"] = lambda call: answers.pop()
    old.offer(job(1, image="/1.png"))
    async with open_door(url=old.url):
        await until(old.results)
    assert old.results()[0].json["status"] == "done"


async def test_a_picture_that_is_gone_is_told(old: OldServer, open_door: OpenDoor) -> None:
    """So is one that fails for too long, and one whose URL is none. No redirect is followed to
    where the job wants us to go.
    """
    for status in (302, 404, 410, 401, 500):
        old.rules[f"GET /{status}.png"] = lambda call: (
            int(call.path[1:4]), {"Location": "/2.png", "Retry-After": "0"}, b"",
        )  # fmt: skip
        old.offer(job(status, image=f"/{status}.png"))
    old.offer(job("none", image=f"{old.url}:1/[/x"))
    async with open_door(url=old.url, bounds=replace(PATIENT, fetch_s=1)):
        await until(lambda: len(old.results()) == 6)
    codes = [call.json["code"] for call in old.results()]
    assert codes == ["bad_image"] * 5 + ["bad_request"]
    assert len(old.results("/500.png")) > 1
    assert not old.results("/2.png")


# stopping and starting


async def test_a_stop_while_a_job_is_pulled_keeps_it(old: OldServer, open_door: OpenDoor) -> None:
    """The answer that is under way when the daemon stops is a job of the next daemon."""
    held = old.holds["GET /api/queue/next"] = threading.Event()
    old.offer(job(1))
    async with open_door(url=old.url) as daemon:
        await until(lambda: old.calls and not old.jobs)
        daemon.stop()
        held.set()
    assert not old.results()
    async with open_door(url=old.url):
        await until(old.results)
    assert old.results()[0].json["status"] == "done"


async def test_a_refusal_survives_a_stop(old: OldServer, open_door: OpenDoor) -> None:
    """The server hears of it from the next daemon."""
    down = [True]
    usual = old.usual
    old.rules["POST /api/queue/result"] = lambda call: (500, {}, b"") if down else usual(call)
    old.offer(job(1, image="QUJD"))
    async with open_door(url=old.url):
        await until(old.results)
    down.clear()
    before = len(old.results())
    async with open_door(url=old.url):
        await until(lambda: len(old.results()) > before)
    assert old.results()[-1].body == old.results()[0].body


# gentleness


async def test_nothing_is_pulled_while_the_queue_is_paused(
    old: OldServer, open_door: OpenDoor
) -> None:
    """Also while the engine loads; both over, the job is done."""
    old.offer(job(1))
    async with open_door(url=old.url, engine={"load_s": 0.5}) as daemon:
        await daemon.executor.pause()
        await until(lambda: daemon.info()["engine"]["ready"])
        await asyncio.sleep(LONG_S)
        assert not old.calls
        await daemon.executor.resume()
        await until(old.results)


@pytest.mark.parametrize("missing", ["model", "room"])
async def test_nothing_is_pulled_that_nobody_could_do(
    missing: str, old: OldServer, open_door: OpenDoor, tmp_path: Path
) -> None:
    """Without a model, and without room on the disk, jobs stay where others can take them."""
    old.offer(job(1))
    engine = {"load_error": "model_missing"} if missing == "model" else {}
    full = {"store": {"dir": tmp_path / "data", "reserve_gb": 1_000_000}}
    core = full if missing == "room" else {}
    async with open_door(core, engine, url=old.url) as daemon:
        state = "failed" if missing == "model" else "ready"
        await until(lambda: daemon.info()["engine"]["state"] == state)
        await asyncio.sleep(LONG_S)
    assert not old.calls


async def test_an_unloaded_engine_keeps_no_job_away(old: OldServer, open_door: OpenDoor) -> None:
    """Nothing else would load it again."""
    async with open_door(url=old.url) as daemon:
        await until(lambda: daemon.info()["engine"]["ready"])
        await daemon.executor.unload()
        await until(lambda: daemon.info()["engine"]["state"] == "unloaded")
        old.offer(job(1))
        await until(old.results)


async def test_the_next_job_is_pulled_when_the_running_one_nears_its_end(
    old: OldServer, open_door: OpenDoor
) -> None:
    """Long edits are not queued behind each other here; a short wait is used to fetch."""
    given: list[float] = []

    def give(call: Call) -> Answer:
        given.append(time.monotonic())
        return old.usual(call)

    old.rules["GET /api/queue/next"] = give
    for id in (1, 2, 3):
        old.offer(job(id, num_steps=10))
    async with open_door(url=old.url, engine={"step_s": 0.4}) as daemon:
        await until(lambda: len(given) == 2)
        await asyncio.sleep(LONG_S)
        assert len(given) == 2
        assert daemon.info()["queue"]["queued"] == 1
    edit_s = 10 * 0.4
    assert given[1] - given[0] >= edit_s - SOON_S - 0.1


async def test_polling_slows_down_and_wakes(old: OldServer, open_door: OpenDoor) -> None:
    """An empty queue is asked at the pace that is set, after a while at the slower one; a job
    brings the quick one back.
    """
    times: list[float] = []

    def note(call: Call) -> Answer:
        times.append(time.monotonic())
        return old.usual(call)

    old.rules["GET /api/queue/next"] = note
    async with open_door(url=old.url, pace=Pace(idle_s=0.05, idle_max_s=0.1, patience=1)):
        await until(lambda: len(times) >= 14)
        quick, slow = pauses(times[:5]), pauses(times[9:14])
        woken = []
        for id in range(5):  # in the best of some tries, since others use the machine too
            old.offer(job(id))
            await until(lambda: not old.jobs)
            came = len(times)
            await until(lambda came=came: len(times) >= came + 3)
            woken += pauses(times[came:])
    # The mean: a poll that is late makes the pause before it longer and the next one shorter.
    assert statistics.mean(quick) > 0.045
    assert statistics.mean(slow) > 0.09
    assert min(woken) < 0.08


async def test_signs_of_life(old: OldServer, open_door: OpenDoor) -> None:
    """At once when a job is taken, and again until its result is taken."""
    old.offer(job(5))
    old.rules["POST /api/queue/result"] = lambda call: (500, {"Retry-After": "1"}, b"")
    beats: Callable[[], list[Call]] = lambda: old.results("/api/queue/heartbeat")  # noqa: E731
    async with open_door(url=old.url, heartbeat=1, worker="w") as daemon:
        await until(lambda: len(beats()) >= 2)
        page = await daemon.jobs.list(JobFilter(), None)
        assert [job.status for job in page.jobs] == [JobStatus.DONE]
    assert {(call.json["id"], call.json["worker"]) for call in beats()} == {(5, "w")}
