"""A daemon with the webhook door and the test engine; jobs come by a door called `http`."""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from pydantic import BaseModel

from tests.plugins.paper import paper_daemon
from tests.plugins.paper import until as until
from tests.plugins.webhook.receiver import SECRET, Receiver
from vellumd import EditRequest, Job, TransportContext, TransportSpec
from vellumd.daemon import Daemon
from vellumd_webhook.plugin import WebhookSettings
from vellumd_webhook.target import Pace
from vellumd_webhook.transport import WebhookTransport

HASTE = Pace(first_s=0.05, most_s=0.2, least_s=0.02)
"""Pauses a hundredth as long, so that tests need not wait."""


class Nothing(BaseModel):
    """No settings."""


class Silent:
    """A door by which jobs of a test come."""

    def __init__(self, context: TransportContext) -> None:
        self._context = context

    async def run(self) -> None:
        self._context.report(True, "here")
        await asyncio.Event().wait()


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    """A service that says yes to all."""
    made = Receiver()
    yield made
    made.close()


OpenDoor = Callable[..., AbstractAsyncContextManager[Daemon]]


@pytest.fixture
def open_door(tmp_path: Path, paper_engine: None) -> OpenDoor:
    """Open a door; keywords are its targets, as URLs or sections."""

    @asynccontextmanager
    async def opened(
        timeout_s: float = 5, pace: Pace = HASTE, **targets: str | dict[str, Any]
    ) -> AsyncIterator[Daemon]:
        sections = {
            name: {"secret": SECRET, **({"url": target} if isinstance(target, str) else target)}
            for name, target in targets.items()
        }
        webhook = TransportSpec(
            "webhook", WebhookSettings, lambda context: WebhookTransport(context, pace, timeout_s)
        )
        others = [TransportSpec(name, Nothing, Silent) for name in ("http", "mqtt")]
        made = paper_daemon(tmp_path, [*others, webhook], {"webhook": {"targets": sections}})
        async with made.running() as daemon:
            yield daemon

    return opened


async def submit(daemon: Daemon, prompt: str = "invert", source: str = "http") -> Job:
    """A job that comes by a door."""
    file = io.BytesIO()
    Image.new("RGB", (48, 32), "teal").save(file, "PNG")
    image = await daemon.jobs.staging.put(file.getvalue(), "")
    request = EditRequest(images=(image,), prompt=prompt, preset="fastest", meta={"order": 7})
    return await daemon.jobs.submit(request, source)
