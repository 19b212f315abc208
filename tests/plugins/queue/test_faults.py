"""What old servers do to their workers, fault by fault."""

from __future__ import annotations

import asyncio
import itertools
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.plugins.queue.conftest import QUICK, OpenDoor, b64, job, png, until
from tests.plugins.queue.old_server import EMPTY, Answer, Call, OldServer
from vellumd import JobFilter, JobStatus
from vellumd.daemon import Daemon


def door_of(daemon: Daemon) -> dict[str, object]:
    """How the door says that it is."""
    door: dict[str, object] = daemon.info()["transports"]["queue"]
    return door


async def all_jobs(daemon: Daemon) -> list[str]:
    """Ids of the daemon's jobs."""
    return [job.id for job in (await daemon.jobs.list(JobFilter(), None)).jobs]


BROKEN: dict[str, Answer] = {
    "500": (500, {}, b"broken"),
    "503": (503, {"Retry-After": "1"}, b""),
    "redirect": (302, {"Location": "/api/queue/next?login"}, b""),
    "html": (200, {"Content-Type": "text/html"}, b"<!doctype html><p>Log in"),
    "garbage": (200, {}, b"\xff\xfe\x00"),
    "wrong schema": (200, {}, b'{"jobs": [1, 2]}'),
    "too much": (200, {}, b'["' + b"A" * (QUICK.job + 1) + b'"]'),
    "unauthorized": (401, {}, b""),
}


@pytest.mark.parametrize("kind", BROKEN)
async def test_a_broken_answer_is_survived(kind: str, old: OldServer, open_door: OpenDoor) -> None:
    """Whatever the server says once, the next job is done; no redirect is followed."""
    answers = [BROKEN[kind]]
    old.rules["GET /api/queue/next"] = lambda call: answers.pop() if answers else old.usual(call)
    old.offer(job())
    async with open_door(url=old.url):
        await until(old.results)
    assert old.results()[0].json["status"] == "done"
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
        async with open_door(servers=servers):
            await until(lambda: len(other.results()) == 3)
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
    async with open_door(url=url):
        await until(lambda: len(began) >= 2, 20)
    began.append(0.0)
    dripping.close()
    assert began[1] - began[0] >= QUICK.total_s


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
        await until(lambda: len(old.calls) == 6)
        assert not door_of(daemon)["ok"]
        assert "answers 503" in str(door_of(daemon)["text"])
        alive.append(True)
        await until(lambda: door_of(daemon)["ok"])
    lines = [r.getMessage() for r in caplog.records if old.url in r.getMessage()]
    assert len(lines) == 3, lines


@pytest.mark.parametrize("first", [500, 503, 400, 401, 302])
async def test_a_result_is_posted_until_it_is_taken(
    first: int, old: OldServer, open_door: OpenDoor
) -> None:
    """Byte-identical each time."""
    answers = [(first, {"Retry-After": "0"}, b"")] * 2
    usual = old.usual
    old.rules["POST /api/queue/result"] = lambda call: answers.pop() if answers else usual(call)
    old.offer(job())
    async with open_door(url=old.url):
        await until(lambda: len(old.results()) == 3)
    assert len({call.body for call in old.results()}) == 1


@pytest.mark.parametrize(
    ("status", "state"),
    [(200, "delivered"), (204, "delivered"), (409, "delivered"), (404, "undeliverable"),
     (410, "undeliverable")],
)  # fmt: skip
async def test_what_ends_a_delivery(
    status: int, state: str, old: OldServer, open_door: OpenDoor, tmp_path: Path
) -> None:
    """Taken, taken before, or not wanted any more: then it is not posted again."""
    old.rules["POST /api/queue/result"] = lambda call: (status, {}, b"")
    old.offer(job(1))
    old.offer(job(2))
    async with open_door(url=old.url) as daemon:
        await until(lambda: len(old.results()) == 2)
        assert len(await all_jobs(daemon)) == 2
    with sqlite3.connect(tmp_path / "data" / "jobs.sqlite") as store:
        rows = store.execute("SELECT state FROM deliveries").fetchall()
    store.close()
    assert rows == [(state,), (state,)]
    assert [call.json["id"] for call in old.results()] == [1, 2]


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


async def test_a_server_that_repeats_itself_is_not_asked_in_a_loop(
    old: OldServer, open_door: OpenDoor
) -> None:
    """The same job, and one that is refused, come at most once a second."""
    again = iter([job(1), *[job(1), job(2, image="QUJD")] * 50])
    times: list[float] = []
    clock = asyncio.get_running_loop().time

    def next_job(call: Call) -> Answer:
        times.append(clock())
        old.offer(next(again))
        return old.usual(call)

    old.rules["GET /api/queue/next"] = next_job
    async with open_door(url=old.url):
        await until(lambda: len(times) >= 5)
    pauses = [later - earlier for earlier, later in itertools.pairwise(times[1:])]
    assert min(pauses) > 0.9


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


@pytest.mark.parametrize("status", [302, 404, 410, 401])
async def test_a_picture_that_is_gone_is_told(
    status: int, old: OldServer, open_door: OpenDoor
) -> None:
    """No redirect is followed to where the job wants us to go."""
    old.rules["GET /1.png"] = lambda call: (status, {"Location": "/2.png"}, b"")
    old.offer(job(1, image="/1.png"))
    async with open_door(url=old.url):
        await until(old.results)
    assert old.results()[0].json["code"] == "bad_image"
    assert not old.results("/2.png")


# stopping and starting


async def test_a_stop_while_a_job_is_pulled_keeps_it(old: OldServer, open_door: OpenDoor) -> None:
    """The answer that is under way when the daemon stops is a job of the next daemon."""
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()

    def answer(call: Call) -> Answer:
        old.rules.clear()
        loop.call_soon_threadsafe(stopping.set)
        time.sleep(0.2)
        return old.usual(call)

    old.rules["GET /api/queue/next"] = answer
    async with open_door(url=old.url) as daemon:
        old.offer(job(1))
        await stopping.wait()
        daemon.stop()
    assert not old.results()
    assert not old.jobs
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


async def test_nothing_is_pulled_that_cannot_start(old: OldServer, open_door: OpenDoor) -> None:
    """Not while the lane is paused, the engine loads or is missing, or an edit takes long."""
    old.offer(job(1))
    async with open_door(url=old.url, engine={"load_s": 1.0}) as daemon:
        await daemon.executor.pause()
        await until(lambda: daemon.info()["engine"]["ready"])
        await asyncio.sleep(1.2)
        assert not old.calls
        await daemon.executor.resume()
        await until(old.results)
        asked = len(old.calls)
    async with open_door(url=old.url, engine={"load_error": "model_missing"}):
        await asyncio.sleep(1.2)
    assert len(old.calls) == asked


async def test_the_next_job_is_pulled_when_the_running_one_nears_its_end(
    old: OldServer, open_door: OpenDoor
) -> None:
    """Long edits are not queued behind each other here; short waits are used to fetch."""
    for id in (1, 2, 3):
        old.offer(job(id, num_steps=10))
    async with open_door(url=old.url, engine={"step_s": 0.4}) as daemon:
        states: set[tuple[int, int]] = set()

        def look() -> bool:
            queue = daemon.info()["queue"]
            states.add((queue["running"], queue["queued"]))
            return len(old.results()) >= 2

        await until(look, 30)
    assert max(queued for _, queued in states) <= 1


async def test_signs_of_life(old: OldServer, open_door: OpenDoor) -> None:
    """At once when a job is taken, and again until its result is taken."""
    old.offer(job(5))
    old.rules["POST /api/queue/result"] = lambda call: (500, {}, b"")
    beats: Callable[[], list[Call]] = lambda: old.results("/api/queue/heartbeat")  # noqa: E731
    async with open_door(url=old.url, heartbeat=1, worker="w") as daemon:
        await until(lambda: len(beats()) >= 3)
        page = await daemon.jobs.list(JobFilter(), None)
        assert [job.status for job in page.jobs] == [JobStatus.DONE]
    assert {(call.json["id"], call.json["worker"]) for call in beats()} == {(5, "w")}
