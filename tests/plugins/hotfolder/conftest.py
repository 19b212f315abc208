"""A daemon with a hot folder on real files, and the test engine behind it."""

from __future__ import annotations

import asyncio
import io
import os
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from vellumd.daemon import Daemon
from vellumd.jobs import JobFilter
from vellumd_hotfolder import outlet, reporter, taker

QUICK = {"settle_s": 0.1, "scan_s": 0.3, "incomplete_s": 0.5}
DEADLINE_S = 20.0


def encoded(tone: int = 0, format: str = "PNG", size: tuple[int, int] = (64, 48)) -> bytes:
    """A picture; each tone is another one. Not flat, so that every format has some bytes."""
    gradient = Image.linear_gradient("L").resize(size)
    bands = [gradient.point([(v + tone * k) % 256 for v in range(256)]) for k in (1, 3, 7)]
    file = io.BytesIO()
    Image.merge("RGB", bands).save(file, format)
    return file.getvalue()


def files_of(folder: Path) -> set[str]:
    """Paths of all files below a folder, while others come and go."""
    return {
        Path(top, name).relative_to(folder).as_posix()
        for top, _, files in os.walk(folder)
        for name in files
    }


@dataclass
class Drop:
    """A hot folder, seen from outside."""

    root: Path
    daemon: Daemon

    @property
    def inbox(self) -> Path:
        return self.root / "inbox"

    def put(self, name: str, data: bytes | str) -> Path:
        """Write a file into the inbox, and the folders above it."""
        file = self.inbox / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data if isinstance(data, bytes) else data.encode())
        return file

    def names(self, part: str) -> set[str]:
        """Paths of all files below a part."""
        return files_of(self.root / part)

    def status(self) -> str:
        """What STATUS.txt says; empty as long as there is none."""
        file = self.root / "STATUS.txt"
        return file.read_text("utf-8-sig") if file.exists() else ""

    async def until(self, happened: Callable[[], bool], what: str) -> None:
        """Wait for something that has to come."""
        end = time.monotonic() + DEADLINE_S
        while not happened():
            shown = {part: sorted(self.names(part)) for part in ("inbox", "outbox", "failed")}
            assert time.monotonic() < end, f"{what} did not come: {shown}"
            await asyncio.sleep(0.02)

    async def out(self, *wanted: str) -> None:
        """Wait until exactly these files lie in the outbox."""
        await self.until(lambda: self.names("outbox") == set(wanted), f"{wanted} in the outbox")

    async def jobs(self) -> list[Any]:
        """All jobs of the store."""
        found, cursor = [], None
        while True:
            page = await self.daemon.jobs.list(JobFilter(), cursor)
            found += page.jobs
            if (cursor := page.next) is None:
                return found


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seconds that people would wait are not waited for here."""
    for module, name in ((taker, "HOLD_S"), (outlet, "RETRY_S"), (reporter, "WRITE_S")):
        monkeypatch.setattr(module, name, 0.2)


OpenDrop = Callable[..., AbstractAsyncContextManager[Drop]]


@pytest.fixture
def drop(make_settings: Callable[..., Any], tmp_path: Path) -> OpenDrop:
    """`async with drop(**settings) as folder`: a running daemon with one hot folder."""

    @asynccontextmanager
    async def open_drop(
        root: Path | None = None, paper: dict[str, Any] | None = None, **settings: Any
    ) -> AsyncIterator[Drop]:
        root = root or tmp_path / "root"
        sections = {key: settings.pop(key) for key in ("limits", "store") if key in settings}
        made = make_settings(paper, **sections)
        made.plugins["hotfolder"] = {"root": str(root), **QUICK, **settings}
        async with Daemon(made).running() as daemon:
            folder = Drop(root, daemon)
            await folder.until(folder.inbox.is_dir, "the inbox")
            yield folder

    return open_drop
