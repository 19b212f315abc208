"""What `vellumd doctor` asks of this door: can the servers be reached? It never pulls a job."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from vellumd import Check

if TYPE_CHECKING:
    from vellumd_queue.plugin import QueueSettings

CONNECT_S = 3
"""Seconds within which a server must take a connection."""


async def check_servers(settings: QueueSettings) -> Iterable[Check]:
    """One finding a server."""
    named = settings.named().items()
    return await asyncio.gather(*(_check(name, server.url) for name, server in named))


async def _check(name: str, url: str) -> Check:
    parts = urlsplit(url)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    try:
        async with asyncio.timeout(CONNECT_S):
            _, writer = await asyncio.open_connection(parts.hostname, port)
    except (OSError, TimeoutError):
        text = f"queue: {name} cannot be reached at {parts.hostname}:{port}; correct its url"
        return Check(False, text)
    writer.close()
    return Check(True, f"queue: {name} takes connections at {parts.hostname}:{port}")
