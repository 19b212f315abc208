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
    from vellumd import addresses

    parts = urlsplit(url)
    host, port = parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)
    try:
        async with asyncio.timeout(CONNECT_S):
            address = await addresses.Resolver().first(host, port)
            _, writer = await asyncio.open_connection(address, port)
    except (OSError, TimeoutError) as error:
        forbidden = isinstance(error, addresses.ForbiddenAddressError)
        why = ": its name leads where no server may be" if forbidden else ""
        text = f"queue: {name} cannot be reached at {host}:{port}{why}; correct its url"
        return Check(False, text)
    writer.close()
    return Check(True, f"queue: {name} takes connections at {host}:{port}")
