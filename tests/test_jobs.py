"""Accepting a job: whole or not at all, also where its sender gives up meanwhile."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.jobs_on_disk import ask, opened
from vellumd import platform
from vellumd.models import JobStatus, new_job_id

Picture = Callable[..., bytes]


class Slow:
    """A disk on which request.json takes until `go_on`."""

    def __init__(self) -> None:
        self.writing = threading.Event()
        self.go_on = threading.Event()

    def write(self, path: Path, data: bytes) -> None:
        if path.name == "request.json":
            self.writing.set()
            assert self.go_on.wait(10)
        platform.write_durably(path, data)


@pytest.mark.parametrize("named_by", ["job_id", "key"])
async def test_a_sender_that_gives_up_and_repeats_loses_nothing(
    tmp_path: Path, picture: Picture, named_by: str
) -> None:
    """Its first request goes on without it; the second is the same job, with all its files."""
    disk_write = Slow()
    async with opened(tmp_path, write=disk_write.write) as disk, asyncio.TaskGroup() as senders:
        request = await ask(disk.jobs, picture(), 1)
        name: dict[str, Any] = {named_by: new_job_id()}
        first = senders.create_task(disk.jobs.submit(request, "test", **name))
        await asyncio.to_thread(disk_write.writing.wait, 10)
        first.cancel()
        again = senders.create_task(disk.jobs.submit(request, "test", **name))
        await asyncio.wait([first])
        disk_write.go_on.set()
        job = await again
        assert await disk.store.ids() == disk.spool.job_ids() == [job.id]
        assert sorted(file.name for file in disk.spool.folder(job.id).iterdir()) == [
            "input-1.png", "request.json",
        ]  # fmt: skip
        assert (await disk.jobs.get(job.id)).status is JobStatus.QUEUED


async def test_a_sender_that_gives_up_for_good_has_a_job(tmp_path: Path, picture: Picture) -> None:
    """What was under way is accepted as a whole: row and folder, or neither."""
    disk_write = Slow()
    async with opened(tmp_path, write=disk_write.write) as disk, asyncio.TaskGroup() as senders:
        request = await ask(disk.jobs, picture(), 1)
        sender = senders.create_task(disk.jobs.submit(request, "test"))
        await asyncio.to_thread(disk_write.writing.wait, 10)
        sender.cancel()
        await asyncio.wait([sender])
        disk_write.go_on.set()
        async with asyncio.timeout(10):
            await disk.jobs.queued(0)
        assert await disk.store.ids() == disk.spool.job_ids()
