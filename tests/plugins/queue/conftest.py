"""A daemon with the queue door and the test engine, and old servers that it pulls from."""

from __future__ import annotations

import base64
import io
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.plugins.paper import paper_daemon
from tests.plugins.paper import until as until
from tests.plugins.queue.old_server import OldServer
from vellumd import TransportSpec
from vellumd.daemon import Daemon
from vellumd_queue.backoff import Pace
from vellumd_queue.client import Bounds
from vellumd_queue.plugin import QueueSettings
from vellumd_queue.transport import QueueTransport

PATIENT = Bounds(silence_s=60, total_s=60, fetch_s=60, job=1 << 20, picture=1 << 20)
"""Small, and longer than any test waits: on a busy machine an answer may take its time."""
QUICK = replace(PATIENT, silence_s=0.5, total_s=1)
"""For servers that are silent on purpose."""
HASTE = Pace(idle_s=0.05, idle_max_s=0.2, patience=5, failed_max_s=0.2)
"""Pauses a twentieth as long, so that tests need not wait."""


def png(color: str = "teal", width: int = 48, height: int = 32) -> bytes:
    """A small picture."""
    file = io.BytesIO()
    Image.new("RGB", (width, height), color).save(file, "PNG")
    return file.getvalue()


def b64(data: bytes) -> str:
    """As JSON carries bytes."""
    return base64.b64encode(data).decode()


def job(id: Any = 1, **fields: Any) -> dict[str, Any]:
    """A job as an old server gives it."""
    return {"id": id, "image": b64(png()), "prompt": "make it blue", **fields}


@pytest.fixture
def old() -> Iterator[OldServer]:
    """An old server."""
    server = OldServer()
    yield server
    server.close()


OpenDoor = Callable[..., AbstractAsyncContextManager[Daemon]]


@pytest.fixture
def open_door(tmp_path: Path, paper_engine: None) -> OpenDoor:
    """Open a door; keywords are its settings, `engine` the engine's, `core` other sections."""

    @asynccontextmanager
    async def opened(
        core: dict[str, Any] | None = None,
        engine: dict[str, Any] | None = None,
        bounds: Bounds = PATIENT,
        pace: Pace = HASTE,
        **queue: Any,
    ) -> AsyncIterator[Daemon]:
        spec = TransportSpec(
            "queue", QueueSettings, lambda context: QueueTransport(context, bounds, pace)
        )
        made = paper_daemon(tmp_path, [spec], {"queue": queue}, engine=engine, core=core)
        async with made.running() as daemon:
            yield daemon

    return opened
