"""A daemon with the HTTP door on a free port, and the test engine behind it."""

from __future__ import annotations

import base64
import io
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from aiohttp import ClientResponse, ClientSession
from PIL import Image

from tests.plugins.paper import paper_daemon
from vellumd import TransportSpec
from vellumd.daemon import Daemon
from vellumd_http.body import Pace
from vellumd_http.plugin import HttpSettings
from vellumd_http.transport import KEEP_ALIVE_S, HttpTransport


def png(width: int = 48, height: int = 32, color: str = "teal") -> bytes:
    """A small picture."""
    file = io.BytesIO()
    Image.new("RGB", (width, height), color).save(file, "PNG")
    return file.getvalue()


def b64(data: bytes) -> str:
    """As JSON carries bytes."""
    return base64.b64encode(data).decode()


PNG = png()
EDIT: dict[str, Any] = {"images": [b64(PNG)], "prompt": "make it blue", "seed": 7}


@dataclass
class Door:
    """A running daemon, seen from outside."""

    daemon: Daemon
    client: ClientSession
    url: str

    @property
    def port(self) -> int:
        """Its TCP port."""
        return int(self.url.rpartition(":")[2])

    async def json(self, method: str, path: str, status: int | None = 200, **options: Any) -> Any:
        """The JSON answer, checked for its status unless that is None."""
        async with self.client.request(method, self.url + path, **options) as got:
            assert status in (None, got.status), await got.text()
            return await got.json(content_type=None)

    @asynccontextmanager
    async def ask(self, method: str, path: str, **options: Any) -> AsyncIterator[ClientResponse]:
        """The answer itself."""
        async with self.client.request(method, self.url + path, **options) as got:
            yield got

    async def done(self, edit: dict[str, Any] | None = None, **headers: str) -> Any:
        """A job that has ended."""
        headers = {"Prefer": "wait=30", **headers}
        return await self.json("POST", "/v1/jobs", json=edit or EDIT, headers=headers)


OpenDoor = Callable[..., AbstractAsyncContextManager[Door]]


@pytest.fixture
def open_door(tmp_path: Path, paper_engine: None) -> OpenDoor:
    """Open a door; keywords are its settings, `engine` the engine's, `core` other sections."""

    @asynccontextmanager
    async def opened(
        core: dict[str, Any] | None = None,
        engine: dict[str, Any] | None = None,
        pace: Pace | None = None,
        keep_alive_s: float = KEEP_ALIVE_S,
        **http: Any,
    ) -> AsyncIterator[Door]:
        spec = TransportSpec(
            "http", HttpSettings, lambda context: HttpTransport(context, pace, keep_alive_s)
        )
        sections = {"http": {"port": 0, **http}}
        made = paper_daemon(tmp_path, [spec], sections, engine=engine, core=core)
        async with made.running() as daemon, ClientSession() as client:
            yield Door(daemon, client, daemon.urls[0])

    return opened


@pytest.fixture
async def door(open_door: OpenDoor) -> AsyncIterator[Door]:
    """A door with the default settings."""
    async with open_door() as opened:
        yield opened
