"""What `vellumd doctor` asks of this door: is the port free, or does a daemon answer there?"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import TYPE_CHECKING

from vellumd import Check

if TYPE_CHECKING:
    from vellumd_http.plugin import HttpSettings

ANSWER_S = 3
"""Seconds within which whatever listens must answer."""


async def check_port(settings: HttpSettings) -> Iterable[Check]:
    """One finding about the configured port; none where the system chooses it."""
    if settings.port == 0:
        return []
    try:
        async with asyncio.timeout(ANSWER_S):
            answer = await _ask(_reachable(settings.host), settings.port)
    except ConnectionError:
        return [Check(True, f"http: port {settings.port} is free")]
    except (OSError, TimeoutError):
        answer = b""
    if answer.startswith(b"HTTP/1.1 200"):
        return [Check(True, f"http: a daemon answers on port {settings.port}")]
    text = f"http: another program has port {settings.port}; set plugins.http.port"
    return [Check(False, text)]


async def _ask(host: str, port: int) -> bytes:
    """The first line of the answer to /healthz; no aiohttp, so that doctor starts quickly."""
    reader, writer = await asyncio.open_connection(host, port)
    try:
        writer.write(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        return await reader.readline()
    finally:
        writer.close()


def _reachable(host: str) -> str:
    """An address that leads to a listener on `host`, which may mean all addresses."""
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - compared only
