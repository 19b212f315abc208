"""Doctor's look at the port: free, a daemon, or somebody else."""

from __future__ import annotations

import asyncio

import pytest

from vellumd_http.checks import check_port
from vellumd_http.plugin import HttpSettings


async def findings(port: int) -> list[tuple[bool, str]]:
    """What the check says of `port`."""
    return [(found.ok, found.text) for found in await check_port(HttpSettings(port=port))]


@pytest.mark.parametrize(
    ("answer", "ok", "text"),
    [
        (b"HTTP/1.1 200 OK\r\n\r\n", True, "a daemon answers"),
        (b"HTTP/1.1 404 Not Found\r\n\r\n", False, "another program"),
        (b"", False, "another program"),
    ],
)
async def test_a_taken_port(answer: bytes, ok: bool, text: str) -> None:
    """Only what answers /healthz counts as a daemon."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readline()
        writer.write(answer)
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        ((found, told),) = await findings(port)
    assert found is ok
    assert text in told
    assert str(port) in told


async def test_a_free_port() -> None:
    """A port on which nobody listens is free."""
    async with await asyncio.start_server(lambda *_: None, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
    assert await findings(port) == [(True, f"http: port {port} is free")]


async def test_a_port_of_the_systems_choice() -> None:
    """Port 0 leaves nothing to look at."""
    assert await findings(0) == []
