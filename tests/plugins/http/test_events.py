"""Server-sent events over real sockets."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp import ClientResponse, web

from vellumd import JobEvent
from vellumd.models import moment
from vellumd_http import events
from vellumd_http.results import send_bytes

from .conftest import EDIT, Door, OpenDoor


async def messages(got: ClientResponse) -> AsyncIterator[dict[str, Any]]:
    """The events of a stream: id, event and data; comments are dropped."""
    message: dict[str, Any] = {}
    async for raw in got.content:
        line = raw.decode().rstrip("\n")
        if not line and message:
            yield {**message, "data": json.loads(message["data"])}
            message = {}
        elif line and not line.startswith(":"):
            name, _, value = line.partition(": ")
            message[name] = value


async def test_a_jobs_stream_tells_its_whole_life_and_ends(open_door: OpenDoor) -> None:
    """From queued to done, opened after the start too; steps are live and without id."""
    async with open_door(engine={"step_s": 0.02}) as door:
        job = await door.json("POST", "/v1/jobs", 202, json=EDIT)
        async with door.ask("GET", f"/v1/jobs/{job['id']}/events") as got:
            assert (got.status, got.content_type) == (200, "text/event-stream")
            seen = [message async for message in messages(got)]
        kinds = [message["event"] for message in seen]
        assert [kind for kind in kinds if kind != "step"] == ["queued", "started", "done"]
        assert "step" in kinds
        assert all(("id" in one) == (one["event"] != "step") for one in seen)
        assert {one["data"]["job_id"] for one in seen} == {job["id"]}


async def test_a_finished_jobs_stream_replays_then_says_no_more(door: Door) -> None:
    """After the last event the answer is 204, which ends an EventSource."""
    job = await door.done()
    path = f"/v1/jobs/{job['id']}/events"
    async with door.ask("GET", path) as got:
        ids = [int(message["id"]) async for message in messages(got)]
    assert len(ids) == 3
    async with door.ask("GET", path, headers={"Last-Event-ID": str(ids[0])}) as got:
        assert [int(message["id"]) async for message in messages(got)] == ids[1:]
    async with door.ask("GET", f"{path}?since={ids[-1]}") as got:
        assert (got.status, await got.read()) == (204, b"")


async def test_resuming_misses_and_repeats_nothing_under_load(door: Door) -> None:
    """A reader that hangs up after every few events still sees each durable one once."""
    count = 40
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(_submit(door, count))
        seen: list[tuple[int, str]] = []
        last = "0"
        async with asyncio.timeout(60):
            while sum(kind == "done" for _, kind in seen) < count:
                headers = {"Last-Event-ID": last}
                async with door.ask("GET", "/v1/events?since=0", headers=headers) as got:
                    async for message in messages(got):
                        if "id" in message:
                            last = message["id"]
                            seen.append((int(last), message["event"]))
                            if len(seen) % 7 == 0 or message["event"] == "done":
                                break
    ids = [number for number, _ in seen]
    assert ids == list(range(1, 3 * count + 1))


async def test_a_number_of_another_store_hides_nothing(door: Door) -> None:
    """A page that was open while the data folder was replaced sees what happens now."""
    async with (
        asyncio.timeout(30),
        door.ask("GET", "/v1/events", headers={"Last-Event-ID": "999999"}) as got,
    ):
        await door.done()
        async for message in messages(got):
            if message["event"] == "done":
                break


async def _submit(door: Door, count: int) -> None:
    for number in range(count):
        await door.json("POST", "/v1/jobs", 202, json={**EDIT, "seed": number})


async def test_previews_come_only_when_asked_for(open_door: OpenDoor) -> None:
    """`?preview=1` shows small JPEGs, others get none."""
    async with open_door() as door:
        await door.json("POST", "/v1/queue/pause")
        async with asyncio.TaskGroup() as tasks:
            job = await door.json("POST", "/v1/jobs", 202, json={**EDIT, "n": 4})
            path = f"/v1/jobs/{job['id']}/events"
            open_ones = asyncio.Semaphore(0)
            with_previews = tasks.create_task(_kinds(door, f"{path}?preview=1", open_ones))
            without = tasks.create_task(_kinds(door, path, open_ones))
            for _ in range(2):
                await open_ones.acquire()
            await door.json("POST", "/v1/queue/resume")
        assert "preview" in with_previews.result()
        assert "preview" not in without.result()


async def _kinds(door: Door, path: str, opened: asyncio.Semaphore) -> set[str]:
    """The kinds of events of a stream; `opened` is released when it has told the first."""
    kinds = set()
    async with door.ask("GET", path) as got:
        async for message in messages(got):
            if not kinds:
                opened.release()
            kinds.add(message["event"])
    return kinds


async def test_a_quiet_stream_begins_with_a_comment(door: Door) -> None:
    """So a proxy and the reader see that it is open."""
    async with door.ask("GET", "/v1/events") as got, asyncio.timeout(10):
        assert await got.content.readline() == b":\n"


async def test_as_many_streams_as_allowed(door: Door) -> None:
    """The next one is told to come back; a freed place is used."""
    async with asyncio.TaskGroup() as tasks:
        leave = asyncio.Event()
        opened = [asyncio.Event() for _ in range(256)]
        for event in opened:
            tasks.create_task(_hold(door, event, leave))
        async with asyncio.timeout(60):
            for event in opened:
                await event.wait()
        async with door.ask("GET", "/v1/events") as got:
            assert (got.status, (await got.json())["code"]) == (429, "queue_full")
            assert "Retry-After" in got.headers
        assert (await door.json("GET", "/healthz"))["status"] == "alive"
        leave.set()


async def _hold(door: Door, opened: asyncio.Event, leave: asyncio.Event) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", door.port)
    writer.write(b"GET /v1/events HTTP/1.1\r\nHost: localhost\r\n\r\n")
    await reader.readuntil(b"\r\n\r\n")
    opened.set()
    await leave.wait()
    writer.close()


@pytest.mark.parametrize(
    ("query", "headers"),
    [("since=x", {}), ("since=-1", {}), ("since=" + "9" * 30, {}), ("from=1", {}),
     ("", {"Last-Event-ID": "abc"})],
)  # fmt: skip
async def test_a_wrong_place_to_resume_is_refused(
    door: Door, query: str, headers: dict[str, str]
) -> None:
    """Rather than skipping events in silence."""
    problem = await door.json("GET", f"/v1/events?{query}", 400, headers=headers)
    assert problem["code"] == "bad_request"


async def test_a_stop_ends_open_streams_in_time(
    open_door: OpenDoor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reader that stays does not hold the daemon: its stream is not waited for."""
    monkeypatch.setattr("vellumd_http.transport.SHUTDOWN_S", 60)
    monkeypatch.setattr("vellumd.transports.CLEANUP_S", 60)
    async with asyncio.timeout(30):
        async with open_door() as door:
            reader, writer = await asyncio.open_connection("127.0.0.1", door.port)
            writer.write(b"GET /v1/events HTTP/1.1\r\nHost: localhost\r\n\r\n")
            await reader.readuntil(b"\r\n\r\n")
    writer.close()


class Roomy(web.StreamResponse):
    """An answer whose socket always has room."""

    async def write(self, data: object) -> None:
        """Take it at once."""


async def test_a_long_replay_lets_others_in() -> None:
    """Between any two writes everybody else has a turn."""
    turns = 0

    async def others() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    async with asyncio.TaskGroup() as tasks:
        waiting = tasks.create_task(others())
        for _ in range(100):
            await send_bytes(Roomy(), b"event")
        waiting.cancel()
    assert turns >= 100


def test_an_event_is_encoded_once_for_all() -> None:
    """The same bytes for each listener; an equal event, or a later one, has its own."""
    encoder = events.Encoder()
    one, two = (JobEvent(job_id="a", type="step", at=moment(0), data={"step": n}) for n in range(2))
    assert encoder.encode(one) is encoder.encode(one)
    assert encoder.encode(one) == events.encode(one) != encoder.encode(two)
    for n in range(100):
        encoder.encode(JobEvent(job_id="a", type="done", at=moment(n), seq=n))
    assert len(encoder._known) == events.ENCODED_MAX
    assert encoder.encode(one) == events.encode(one)
