"""What `vellumd doctor` asks of the targets: reached, and on request, told something."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from vellumd import Check, __version__, addresses, new_job_id
from vellumd_webhook import wire
from vellumd_webhook.client import FailedError, open_client, resolver, trust

if TYPE_CHECKING:
    from vellumd_webhook.plugin import TargetSettings, WebhookSettings

CONNECT_S = 5.0
"""Seconds within which a target must take a connection."""


async def targets(settings: WebhookSettings) -> Iterable[Check]:
    """One finding a target."""
    check = _ping if settings.ping else _reach
    named = settings.targets.items()
    return await asyncio.gather(*(check(f"webhook: {name}", target) for name, target in named))


async def _ping(name: str, target: TargetSettings) -> Check:
    """Whether it takes a signed message."""
    async with open_client(target) as client:
        try:
            await client.post(wire.ping(new_job_id(), datetime.now(UTC), __version__))
        except FailedError as failure:
            return Check(
                False, f"{name} at {target.host} {failure.text}; correct its url or secret"
            )
    return Check(True, f"{name} at {target.host} takes signed messages")


async def _reach(name: str, target: TargetSettings) -> Check:
    """Whether it takes a connection, with TLS where the messages have it."""
    try:
        async with asyncio.timeout(CONNECT_S):
            _, writer = await asyncio.open_connection(
                await resolver(target).first(target.host, target.port),
                target.port,
                ssl=(context := await trust(target)),
                server_hostname=target.host if context else None,
            )
    except (OSError, TimeoutError) as error:
        forbidden = isinstance(error, addresses.ForbiddenAddressError)
        why = ": its name leads where no target may be" if forbidden else ""
        text = f"{name} cannot be reached at {target.host}:{target.port}{why}; correct its url"
        return Check(False, text)
    writer.close()
    return Check(
        True,
        f"{name} takes connections at {target.host}:{target.port}; --plugins.webhook.ping true "
        "sends it a signed message",
    )
