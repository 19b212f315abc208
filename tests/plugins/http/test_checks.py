"""Doctor's look at address, port and key."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from vellumd_http.checks import check_key, check_port
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


@pytest.mark.parametrize("host", ["192.0.2.1", "no-such-name.invalid"])
async def test_an_address_of_another_machine(host: str) -> None:
    """It is the address that is wrong, not the port that is taken."""
    (found,) = await check_port(HttpSettings(host=host))
    assert not found.ok and f"{host} is no address of this machine" in found.text


@pytest.mark.parametrize(("key", "ok"), [("right", True), ("", False), (None, False)])
async def test_a_key_file(key: str | None, ok: bool, tmp_path: Path) -> None:
    """What would refuse the start is told before it."""
    if key is not None:
        (tmp_path / "key").write_text(key, "ascii")
    (found,) = await check_key(HttpSettings(api_key_file=tmp_path / "key"))
    assert found.ok is ok and "api_key_file" in found.text
    assert await check_key(HttpSettings()) == []


async def test_a_port_of_the_systems_choice() -> None:
    """Port 0 leaves nothing to look at."""
    assert await findings(0) == []
