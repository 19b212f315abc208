"""A daemon with the webhook door and the test engine; jobs come by a door called `http`."""

from __future__ import annotations

import asyncio
import importlib
import io
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from pydantic import BaseModel

from tests.plugins.webhook.receiver import SECRET, Receiver
from vellumd import EditRequest, EngineSpec, Job, TransportContext, TransportSpec
from vellumd.daemon import Daemon
from vellumd.plugins import Plugins
from vellumd.settings import Settings
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
    paper: EngineSpec = importlib.import_module("paper_engine").vellumd_engines()[0]

    @asynccontextmanager
    async def opened(
        timeout_s: float = 5, pace: Pace = HASTE, **targets: str | dict[str, Any]
    ) -> AsyncIterator[Daemon]:
        sections = {
            name: {"secret": SECRET, **({"url": target} if isinstance(target, str) else target)}
            for name, target in targets.items()
        }
        settings = Settings.model_validate(
            {
                "engine": {"name": paper.name},
                "store": {"dir": tmp_path / "data"},
                "daemon": {"stop_s": 0.5},
                "plugins": {"webhook": {"targets": sections}, paper.name: {}},
            }
        )
        webhook = TransportSpec(
            "webhook", WebhookSettings, lambda context: WebhookTransport(context, pace, timeout_s)
        )
        doors = {name: TransportSpec(name, Nothing, Silent) for name in ("http", "mqtt")}
        plugins = Plugins((), {**doors, "webhook": webhook}, {paper.name: paper}, ())
        async with Daemon(settings, plugins).running() as daemon:
            yield daemon

    return opened


async def submit(daemon: Daemon, prompt: str = "invert", source: str = "http") -> Job:
    """A job that comes by a door."""
    file = io.BytesIO()
    Image.new("RGB", (48, 32), "teal").save(file, "PNG")
    image = await daemon.jobs.stage(file.getvalue(), "")
    request = EditRequest(images=(image,), prompt=prompt, preset="fastest", meta={"order": 7})
    return await daemon.jobs.submit(request, source)


async def until(happened: Callable[[], Any], seconds: float = 15) -> None:
    """Wait until something is so."""
    async with asyncio.timeout(seconds):
        while not happened():
            await asyncio.sleep(0.01)
