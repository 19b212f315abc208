"""Bodies over real sockets: whole, too big, too slow, lying, malformed."""

from __future__ import annotations

import asyncio
import gzip
import json
import os
import random
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path

import pytest
from aiohttp import ClientSession, FormData, web

from vellumd import errors
from vellumd_http.body import PARTS_MAX, SMALL, Bodies, Pace, parts

STALLS = Pace(stall_s=0.3, total_s=60, progress=1024)
ENDS = Pace(stall_s=1.5, total_s=2.0, progress=1024)


async def count(bodies: Bodies, request: web.Request) -> int:
    async with bodies.open(request) as paced:
        return len(await paced.whole(paced.chunks()))


async def keys(bodies: Bodies, request: web.Request) -> list[str]:
    return sorted(await bodies.json(request))


async def form(bodies: Bodies, request: web.Request) -> list[list[object]]:
    found: list[list[object]] = []
    async with bodies.open(request) as paced:
        async for part in parts(paced, request):
            size = sum([len(chunk) async for chunk in part.rest()])
            found.append([part.name, part.filename, size])
    return found


Reader = Callable[[Bodies, web.Request], Awaitable[object]]


@asynccontextmanager
async def serving(reader: Reader, bodies: Bodies) -> AsyncIterator[int]:
    """A server that answers what `reader` makes of the body, or the error's code."""

    async def handle(request: web.Request) -> web.Response:
        try:
            return web.json_response(await reader(bodies, request))
        except errors.VellumError as error:
            return web.json_response({"code": error.code}, status=error.status)

    app = web.Application()
    app.router.add_post("/", handle)
    runner = web.AppRunner(app, auto_decompress=False, access_log=None, shutdown_timeout=1)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield runner.addresses[0][1]
    finally:
        await runner.cleanup()


@asynccontextmanager
async def raw(
    port: int, head: str
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """A connection that has sent the head of a POST."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(f"POST / HTTP/1.1\r\nHost: localhost\r\n{head}\r\n".encode())
        yield reader, writer
    finally:
        writer.close()


async def answer(reader: asyncio.StreamReader) -> tuple[int, object]:
    """Status and JSON of a raw answer."""
    async with asyncio.timeout(20):
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        length = next(
            int(line.partition(":")[2])
            for line in head.splitlines()
            if line.lower().startswith("content-length")
        )
        return int(head.split()[1]), json.loads(await reader.readexactly(length))


async def test_a_body_within_the_limit_is_read() -> None:
    """With and without a length; exactly the limit is allowed."""

    async def unsized() -> AsyncIterator[bytes]:
        for _ in range(16):
            yield bytes(1 << 16)

    async with serving(count, Bodies(1 << 20)) as port, ClientSession() as client:
        for data in (bytes(1 << 20), unsized()):
            async with client.post(f"http://127.0.0.1:{port}/", data=data) as got:
                assert (got.status, await got.json()) == (200, 1 << 20)


async def test_a_body_beyond_the_limit_ends_early() -> None:
    """By its announced length, or while it comes without one."""
    async with serving(count, Bodies(1 << 20)) as port:
        async with raw(port, "Content-Length: 1048577\r\n") as (reader, _):
            assert await answer(reader) == (413, {"code": "payload_too_large"})
        async with raw(port, "Transfer-Encoding: chunked\r\n") as (reader, writer):
            for _ in range(17):
                writer.write(b"10000\r\n" + bytes(1 << 16) + b"\r\n")
            assert await answer(reader) == (413, {"code": "payload_too_large"})


async def test_a_compressed_body_is_refused() -> None:
    """So there is no bomb to unpack."""
    async with serving(count, Bodies(1 << 20)) as port, ClientSession() as client:
        bomb = gzip.compress(bytes(10 << 20))
        headers = {"Content-Encoding": "gzip"}
        async with client.post(f"http://127.0.0.1:{port}/", data=bomb, headers=headers) as got:
            assert (got.status, await got.json()) == (400, {"code": "bad_request"})


async def test_a_body_without_progress_times_out() -> None:
    """One byte now and then is no progress, however long it is kept up."""
    async with (
        serving(count, Bodies(1 << 20, STALLS)) as port,
        raw(port, "Content-Length: 100000\r\n") as (reader, writer),
        asyncio.TaskGroup() as tasks,
    ):
        dribble = tasks.create_task(_dribble(writer, b"x", 0.02))
        assert await answer(reader) == (408, {"code": "body_timeout"})  # far before the total
        dribble.cancel()


async def test_a_body_has_an_end_even_with_progress() -> None:
    """Just fast enough for the stall limit still ends at the total."""
    async with (
        serving(count, Bodies(1 << 20, ENDS)) as port,
        raw(port, "Content-Length: 1000000\r\n") as (reader, writer),
        asyncio.TaskGroup() as tasks,
    ):
        dribble = tasks.create_task(_dribble(writer, bytes(2048), 0.1))
        started = asyncio.get_running_loop().time()
        assert await answer(reader) == (408, {"code": "body_timeout"})
        assert asyncio.get_running_loop().time() - started > 1.9
        dribble.cancel()


async def _dribble(writer: asyncio.StreamWriter, data: bytes, pause: float) -> None:
    while True:
        writer.write(data)
        await asyncio.sleep(pause)


async def test_a_length_that_lies_is_an_early_end() -> None:
    """Neither half a body nor what is behind it reaches the handler as whole."""
    got: list[object] = []

    async def remember(bodies: Bodies, request: web.Request) -> object:
        try:
            got.append(await count(bodies, request))
        except errors.VellumError as error:
            got.append(error.code)
        return None

    async with serving(remember, Bodies(1 << 20)) as port:
        async with raw(port, "Content-Length: 100\r\n") as (reader, writer):
            writer.write(b"short")
            writer.write_eof()
            await reader.read()
        assert got == ["bad_request"]
        async with raw(port, "Content-Length: 3\r\n") as (reader, writer):
            writer.write(b"longer")
            writer.write_eof()
            await reader.read()
        assert got[1:] in ([], [3])


async def stream(bodies: Bodies, request: web.Request) -> int:
    async with bodies.open(request) as paced:
        return sum([len(chunk) async for chunk in paced.chunks()])


@pytest.mark.parametrize("sent", [1000, 100_000])
@pytest.mark.parametrize("reader", [stream, count])
async def test_slow_bodies_keep_nobody_waiting(reader: Reader, sent: int, tmp_path: Path) -> None:
    """One that waits for its sender has no slot, however much of it has come, streamed or not."""
    bodies = Bodies(1 << 20, at_once=1, folder=tmp_path)
    async with AsyncExitStack() as stack:
        port = await stack.enter_async_context(serving(reader, bodies))
        client = await stack.enter_async_context(ClientSession())
        for _ in range(20):
            _, writer = await stack.enter_async_context(raw(port, "Content-Length: 1000000\r\n"))
            await _send(writer, bytes(sent))
        async with asyncio.timeout(10):
            assert await _post(client, port, bytes(1 << 20)) == 1 << 20
    assert os.listdir(tmp_path) == []


async def test_a_body_that_is_needed_whole_is_whole() -> None:
    """Byte by byte as it came, also where it waited in a file."""
    for size in (0, 1, SMALL, SMALL + 1, 1 << 20):
        body = random.Random(size).randbytes(size)

        async def same(bodies: Bodies, request: web.Request, body: bytes = body) -> bool:
            async with bodies.open(request) as paced:
                return await paced.whole(paced.chunks()) == body

        async with serving(same, Bodies(4 << 20)) as port, ClientSession() as client:
            assert await _post(client, port, body) is True


async def test_a_full_disk_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """A big JSON body waits on the disk for its end; without room that is no fault of ours."""
    full = partial(open, "/dev/full", "r+b", buffering=0)
    monkeypatch.setattr(tempfile, "TemporaryFile", lambda **_: full())
    async with serving(keys, Bodies(1 << 20)) as port, ClientSession() as client:
        body = json.dumps({"a": "x" * 100_000}).encode()
        async with client.post(f"http://127.0.0.1:{port}/", data=body) as got:
            assert (got.status, await got.json()) == (507, {"code": "storage_full"})


async def test_only_so_many_bodies_are_worked_on() -> None:
    """While one's bytes are being used, another's stay where they are."""
    at_work, go_on = 0, asyncio.Event()

    async def work(bodies: Bodies, request: web.Request) -> int:
        nonlocal at_work
        size = 0
        async with bodies.open(request) as paced:
            async for chunk in paced.chunks():
                size += len(chunk)
                if size > SMALL:
                    at_work += 1
                    await go_on.wait()
        return size

    bodies = Bodies(1 << 20, at_once=2)
    async with serving(work, bodies) as port, ClientSession() as client:
        async with asyncio.TaskGroup() as tasks:
            sent = [tasks.create_task(_post(client, port, bytes(1 << 20))) for _ in range(4)]
            await until(bodies._slots.locked)
            assert at_work <= 2
            go_on.set()
        assert [one.result() for one in sent] == [1 << 20] * 4


async def test_the_line_has_a_deadline() -> None:
    """Who waits in line too long is told so."""
    bodies = Bodies(1 << 20, Pace(stall_s=5, total_s=1), at_once=1)
    async with (
        serving(_hold, bodies) as port,
        ClientSession() as client,
        raw(port, "Content-Length: 100000\r\n") as (_, holder),
    ):
        await _send(holder, bytes(100_000))
        await until(bodies._slots.locked)
        async with asyncio.TaskGroup() as tasks:
            second = tasks.create_task(_post(client, port, bytes(100_000)))
        assert second.result() == {"code": "body_timeout"}


async def _send(writer: asyncio.StreamWriter, data: bytes) -> None:
    writer.write(data)
    await writer.drain()


async def until(true: Callable[[], bool]) -> None:
    """Wait until it is so."""
    async with asyncio.timeout(10):
        while not true():
            await asyncio.sleep(0.005)


async def _hold(bodies: Bodies, request: web.Request) -> object:
    async with bodies.open(request) as paced:
        await paced.whole(paced.chunks())
        await asyncio.Event().wait()


async def _post(client: ClientSession, port: int, data: bytes) -> object:
    async with client.post(f"http://127.0.0.1:{port}/", data=data) as got:
        return await got.json()


async def test_json_needs_no_content_type() -> None:
    """Node-RED and curl send what they like."""
    async with serving(keys, Bodies(64 << 20)) as port, ClientSession() as client:
        for type in ("", "text/plain", "application/x-www-form-urlencoded", "application/json"):
            for size in (1, 100_000):
                body = json.dumps({"a": "x" * size, "b": 1})
                headers = {"Content-Type": type}
                async with client.post(
                    f"http://127.0.0.1:{port}/", data=body.encode(), headers=headers
                ) as got:
                    assert await got.json() == ["a", "b"]


async def test_json_ends_at_32_mib() -> None:
    """However much a form may have."""
    async with (
        serving(keys, Bodies(64 << 20)) as port,
        raw(port, f"Content-Length: {(32 << 20) + 1}\r\n") as (reader, _),
    ):
        assert await answer(reader) == (413, {"code": "payload_too_large"})


async def test_parts_come_in_their_order() -> None:
    """Names, file names and sizes; empty parts and binary content included."""
    data = FormData()
    data.add_field("prompt", "grüße")
    data.add_field("images", bytes(range(256)) * 1000, filename="a.png", content_type="image/png")
    data.add_field("images", b"\r\n--\r\n", filename="b.png")
    data.add_field("empty", b"", filename="c.png")
    async with (
        serving(form, Bodies(1 << 20)) as port,
        ClientSession() as client,
        client.post(f"http://127.0.0.1:{port}/", data=data) as got,
    ):
        assert await got.json() == [
            ["prompt", None, 7], ["images", "a.png", 256_000], ["images", "b.png", 6],
            ["empty", "c.png", 0],
        ]  # fmt: skip


def disposition(name: str) -> bytes:
    return f'Content-Disposition: form-data; name="{name}"\r\n'.encode()


MALFORMED = {
    "no boundary line": b"hello",
    "nothing": b"",
    "no end": b"--B\r\n" + disposition("a") + b"\r\nxyz",
    "no name": b"--B\r\n\r\nx\r\n--B--\r\n",
    "nested": b"--B\r\n" + disposition("a") + b"Content-Type: multipart/mixed; boundary=C\r\n\r\n"
    b"--C\r\n\r\nx\r\n--C--\r\n--B--\r\n",
    "nested without boundary": b"--B\r\n" + disposition("a")
    + b"Content-Type: multipart/mixed\r\n\r\nx\r\n--B--\r\n",
    "header without end": b"--B\r\n" + b"X: " + b"y" * 100_000,
    "many headers": b"--B\r\n" + b"X: y\r\n" * 10_000 + b"\r\n\r\n--B--\r\n",
    "newlines before": b"\n" * 100_000 + b"--B\r\n" + disposition("a") + b"\r\nx\r\n--B--\r\n",
    "bad header": b"--B\r\nno colon\r\n\r\nx\r\n--B--\r\n",
    "10,000 parts": b"".join(b"--B\r\n" + disposition("a") + b"\r\nx\r\n" for _ in range(10_000))
    + b"--B--\r\n",
    "charset trick": b"--B\r\n" + disposition("_charset_") + b"\r\n" + b"u" * 40 + b"\r\n--B--\r\n",
    "not utf-8 header": b'--B\r\nContent-Disposition: form-data; name="\xff"; \xff\r\n\r\nx\r\n',
}  # fmt: skip


@pytest.mark.filterwarnings("ignore::aiohttp.BadContentDispositionHeader")
@pytest.mark.parametrize("what", MALFORMED)
async def test_malformed_forms_are_refused(what: str) -> None:
    """Every one is the sender's error, never ours."""
    head = {"Content-Type": "multipart/form-data; boundary=B"}
    async with (
        serving(form, Bodies(8 << 20)) as port,
        ClientSession() as client,
        client.post(f"http://127.0.0.1:{port}/", data=MALFORMED[what], headers=head) as got,
    ):
        assert (got.status, await got.json()) == (400, {"code": "bad_request"})


@pytest.mark.parametrize(
    "type",
    [
        "multipart/form-data",
        "multipart/mixed; boundary=B",
        "multipart/form-data; boundary=" + "B" * 99,
    ],
)
async def test_other_multipart_types_are_refused(type: str) -> None:
    """Only forms with a boundary of lawful length."""
    async with (
        serving(form, Bodies(8 << 20)) as port,
        ClientSession() as client,
        client.post(
            f"http://127.0.0.1:{port}/", data=b"--B--\r\n", headers={"Content-Type": type}
        ) as got,
    ):
        assert (got.status, await got.json()) == (400, {"code": "bad_request"})


async def test_as_many_parts_as_allowed_pass() -> None:
    """The limit itself is no error."""
    body = b"".join(b"--B\r\n" + disposition("a") + b"\r\nx\r\n" for _ in range(PARTS_MAX - 1))
    head = {"Content-Type": "multipart/form-data; boundary=B"}
    async with (
        serving(form, Bodies(8 << 20)) as port,
        ClientSession() as client,
        client.post(f"http://127.0.0.1:{port}/", data=body + b"--B--\r\n", headers=head) as got,
    ):
        assert len(await got.json()) == PARTS_MAX - 1
