"""Connections that send or take too little, on real sockets."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager

import psutil
import pytest
from aiohttp import web

from vellumd_http.body import Pace
from vellumd_http.connection import Connection
from vellumd_http.listen import listen, port_of
from vellumd_http.results import send_bytes

from .conftest import OpenDoor

BIG = bytes(24 << 20)
"""More than the system's buffers for a connection hold."""
HASTE = Pace(stall_s=0.4, total_s=5, progress=16 << 10)


@contextmanager
def sent(port: int, request: bytes) -> Iterator[socket.socket]:
    """A connection with little room for answers that has sent `request`."""
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 << 10)
        client.connect(("127.0.0.1", port))
        client.sendall(request)
        client.setblocking(False)
        yield client


async def dropped(client: socket.socket) -> None:
    """Wait until the daemon has our connection, then until it lets go, reading nothing."""
    port = client.getsockname()[1]
    async with asyncio.timeout(10):
        while not _has_other_end(port):
            await asyncio.sleep(0.01)
        while _has_other_end(port):
            await asyncio.sleep(0.01)


def _has_other_end(port: int) -> bool:
    """Whether this process, in which the daemon runs, has a socket that leads to `port`."""
    return any(
        connection.raddr and connection.raddr.port == port
        for connection in psutil.Process().net_connections("tcp4")
    )


@pytest.mark.parametrize("said", [b"", b"GET / HTTP/1.1\r\nHost: loc"])
async def test_without_a_request_a_connection_ends(open_door: OpenDoor, said: bytes) -> None:
    """Nothing said, or half a head: the same end, however slowly more of it comes."""
    async with open_door(keep_alive_s=0.4) as door:
        reader, writer = await asyncio.open_connection("127.0.0.1", door.port)
        writer.write(said)
        async with asyncio.timeout(10), asyncio.TaskGroup() as tasks:

            async def trickle() -> None:
                while said:
                    await asyncio.sleep(0.05)
                    writer.write(b"x")

            trickling = tasks.create_task(trickle())
            assert await reader.read() == b""
            trickling.cancel()
        writer.close()


async def test_after_an_answer_a_connection_ends_too(open_door: OpenDoor) -> None:
    """Kept for the next request, but not for ever."""
    async with open_door(keep_alive_s=1) as door:
        reader, writer = await asyncio.open_connection("127.0.0.1", door.port)
        for _ in range(2):
            writer.write(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert b" 200 " in await reader.readuntil(b'{"status": "alive"}')
        async with asyncio.timeout(10):
            assert await reader.read() == b""
        writer.close()


@asynccontextmanager
async def serving(
    write: Callable[[web.Request], Awaitable[web.StreamResponse]],
) -> AsyncIterator[int]:
    """A door with one route that answers with something big."""
    app = web.Application()
    app.router.add_get("/", write)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    served = runner.server
    assert served is not None
    server = await listen(lambda: Connection(served, HASTE, access_log=None), "127.0.0.1", 0)
    try:
        yield port_of(server)
    finally:
        server.close()
        await runner.cleanup()


async def at_once(request: web.Request) -> web.StreamResponse:
    return web.Response(body=BIG)


async def in_pieces(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse()
    await response.prepare(request)
    for start in range(0, len(BIG), 1 << 18):
        await send_bytes(response, BIG[start : start + (1 << 18)])
    return response


async def in_crumbs(request: web.Request) -> web.StreamResponse:
    """As events come: each little, without end."""
    response = web.StreamResponse()
    await response.prepare(request)
    while True:
        await send_bytes(response, bytes(8 << 10))


async def without_waiting(request: web.Request) -> web.StreamResponse:
    """More comes for the reader than it takes meanwhile."""
    response = web.StreamResponse()
    await response.prepare(request)
    for start in range(0, len(BIG), 1 << 20):
        await request.writer.write(BIG[start : start + (1 << 20)], drain=False)
        await asyncio.sleep(0.02)
    return response


@pytest.mark.parametrize("write", [at_once, in_pieces, in_crumbs, without_waiting])
@pytest.mark.parametrize("after", [b"", b"Connection: close\r\n"])
async def test_a_reader_that_takes_nothing_is_dropped(
    write: Callable[[web.Request], Awaitable[web.StreamResponse]], after: bytes
) -> None:
    """However the answer is written, and also where only closing is left to do."""
    async with serving(write) as port:
        with sent(port, b"GET / HTTP/1.1\r\nHost: localhost\r\n" + after + b"\r\n") as client:
            await dropped(client)


@pytest.mark.parametrize("write", [in_pieces, without_waiting])
async def test_a_slow_reader_is_served(
    write: Callable[[web.Request], Awaitable[web.StreamResponse]],
) -> None:
    """Three times longer than the stall limit, but steady, however fast more comes."""
    loop = asyncio.get_running_loop()
    async with serving(write) as port:
        ask = b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
        with sent(port, ask) as client:
            size, began = 0, loop.time()
            async with asyncio.timeout(30):
                while data := await loop.sock_recv(client, 64 << 10):
                    size += len(data)
                    if loop.time() - began < 1.2:
                        await asyncio.sleep(0.02)
        assert size > len(BIG)
