"""A crowd that sends and takes as little as it can, and what it costs everybody else."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

from tests.bench import serving

CLIENTS = 4
BIG = "/static/swagger-ui-bundle.js"
"""An answer that does not fit into the buffers of a reader's connection."""


@dataclass(frozen=True)
class Crowd:
    """How many of each kind; half of the bodies stop after 100 KB, half never get there."""

    idle: int = 1000
    bodies: int = 100
    readers: int = 100


async def compare(
    port: int, crowd: Crowd, photos: Sequence[bytes], rounds: int, uploads: int
) -> tuple[float, float]:
    """p99 of uploads in seconds without and with the crowd, by turns in one run."""
    alone: list[float] = []
    beside: list[float] = []
    for _ in range(rounds):
        alone += await _flood(port, photos, uploads)
        async with gathered(port, crowd):
            beside += await _flood(port, photos, uploads)
    return serving.p99(alone), serving.p99(beside)


async def _flood(port: int, photos: Sequence[bytes], uploads: int) -> list[float]:
    """Seconds of each upload; a few before them let what just came get through."""
    await serving.flood(port, "/v1/jobs", photos, 40, CLIENTS)
    return await serving.flood(port, "/v1/jobs", photos, uploads, CLIENTS)


@asynccontextmanager
async def gathered(port: int, crowd: Crowd) -> AsyncIterator[None]:
    """The crowd, while the block runs; all of it is still there at its end."""
    async with AsyncExitStack() as stack:

        async def connect(sent: bytes) -> socket.socket:
            client = stack.enter_context(socket.socket())
            client.setblocking(False)
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            loop = asyncio.get_running_loop()
            await loop.sock_connect(client, ("127.0.0.1", port))
            await loop.sock_sendall(client, sent)
            return client

        idle = [await connect(b"") for _ in range(crowd.idle)]
        head = b"POST /v1/inputs HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9999999\r\n\r\n"
        photo = serving.photos(1)[0]
        for number in range(crowd.bodies):
            body = photo[:100_000] if number % 2 else photo[:100]
            idle.append(await connect(head + body))
        ask = f"GET {BIG} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()
        for _ in range(crowd.readers):
            await connect(ask)
        senders = idle[crowd.idle :]
        async with asyncio.TaskGroup() as tasks:
            trickling = tasks.create_task(_trickle(senders))
            yield
            trickling.cancel()
        assert all(_is_open(client) for client in idle), "the crowd did not stay"


async def _trickle(senders: list[socket.socket]) -> None:
    """A byte a second from each."""
    loop = asyncio.get_running_loop()
    while True:
        for sender in senders:
            await loop.sock_sendall(sender, b"x")
        await asyncio.sleep(1)


def _is_open(client: socket.socket) -> bool:
    """Whether the daemon has neither answered nor closed."""
    try:
        client.recv(1)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False
