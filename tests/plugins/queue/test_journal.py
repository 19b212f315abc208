"""The file of what was pulled: written one thing after the other, also at the end."""

from __future__ import annotations

import asyncio
import logging
import threading
from pathlib import Path
from typing import Any

import pytest

from vellumd_queue import journal
from vellumd_queue.journal import Journal

LOG = logging.getLogger("test")


async def test_what_was_begun_ends_before_it_is_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A connection that is closed under a statement takes the process down."""
    begun, go_on, commit = threading.Event(), threading.Event(), journal._commit

    def slow(*args: Any) -> int:
        begun.set()
        assert go_on.wait(10)
        return commit(*args)

    monkeypatch.setattr(journal, "_commit", slow)
    async with Journal(tmp_path / "pulled.sqlite", LOG) as kept, asyncio.TaskGroup() as tasks:
        writing = tasks.create_task(kept.keep("main", b"{}"))
        assert await asyncio.to_thread(begun.wait, 10)
        writing.cancel()
        asyncio.get_running_loop().call_later(0.2, go_on.set)
    async with Journal(tmp_path / "pulled.sqlite", LOG) as kept:
        assert [entry.job for entry in await kept.entries("main")] == [b"{}"]
