"""Disks that are full, failing, read-only or locked: told, never hidden, nothing lost."""

from __future__ import annotations

import asyncio
import errno
import os
import sqlite3
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.jobs_on_disk import NAME, ask, opened
from vellumd import daemon as daemon_module
from vellumd import errors, platform
from vellumd.daemon import Daemon
from vellumd.models import EditRequest, JobStatus
from vellumd.store import schema
from vellumd.store.spool import SharedSync
from vellumd.store.store import BrokenStoreError, Store

Picture = Callable[..., bytes]


class Faulty:
    """A seam that works until `error` is set; `seen` are the files it was asked to write."""

    def __init__(self) -> None:
        self.error: Exception | None = None
        self.seen: list[Path] = []

    def write(self, path: Path, data: bytes) -> None:
        self.seen.append(path)
        platform.write_durably(path, data)
        if self.error:
            raise self.error

    def commit(self, connection: sqlite3.Connection) -> None:
        if self.error:
            raise self.error
        connection.commit()


def os_error(number: int) -> OSError:
    return OSError(number, os.strerror(number))


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (os_error(errno.ENOSPC), errors.StorageFull),
        (os_error(errno.EDQUOT), errors.StorageFull),
        (os_error(errno.EROFS), errors.EngineUnavailable),
        (os_error(errno.EIO), errors.Internal),
    ],
    ids=["full", "quota", "read-only", "failing"],
)
async def test_a_folder_that_cannot_be_written(
    tmp_path: Path, picture: Picture, error: OSError, kind: type[errors.VellumError]
) -> None:
    """Not accepted, nothing left behind; afterwards the same request is, with new files."""
    disk_write = Faulty()
    async with opened(tmp_path, write=disk_write.write) as disk:
        request = await ask(disk.jobs, picture(), 1)
        disk_write.error = error
        for _ in range(3):
            with pytest.raises(kind) as caught:
                await disk.jobs.submit(request, "test", key="k")
            assert str(tmp_path) not in caught.value.message
        with pytest.raises(kind):
            await disk.jobs.staging.put(picture(2), "b.png")
        assert disk.spool.job_ids() == [] and await disk.store.ids() == []
        disk_write.error = None
        job = await disk.jobs.submit(request, "test", key="k")
        assert (await disk.jobs.get(job.id)).status is JobStatus.QUEUED
        assert len(set(disk_write.seen)) == len(disk_write.seen), "a file was written twice"
    assert not list((tmp_path / "spool" / "staged").glob(".*"))


async def test_a_full_disk_at_the_commit(tmp_path: Path, picture: Picture) -> None:
    """storage_full to the sender, no row, no folder, no event; then it goes on."""
    database = Faulty()
    async with opened(tmp_path, commit=database.commit) as disk:
        request = await ask(disk.jobs, picture(), 1)
        database.error = sqlite3.OperationalError("database or disk is full")
        with pytest.raises(errors.StorageFull):
            await disk.jobs.submit(request, "test")
        database.error = None
        assert await disk.store.ids() == [] and await disk.store.last_seq() == 0
        await disk.jobs.submit(request, "test")


@pytest.mark.parametrize("by", ["delete", "retention"])
async def test_on_a_full_disk_pictures_go_before_their_row(
    tmp_path: Path, picture: Picture, by: str
) -> None:
    """What makes room needs none itself, or nobody could ever make any."""
    pictures: list[Path] = []
    written = [0]

    def commit(connection: sqlite3.Connection) -> None:
        if connection.total_changes != written[0] and any(folder.exists() for folder in pictures):
            written[0] = connection.total_changes
            raise sqlite3.OperationalError("database or disk is full")
        written[0] = connection.total_changes
        connection.commit()

    async with opened(tmp_path, commit=commit) as disk:
        job = await disk.finish(picture(), 1)
        waiting = await disk.jobs.submit(await ask(disk.jobs, picture(2), 2), "test")
        pictures.append(disk.spool.folder(job.id))
        if by == "delete":
            with pytest.raises(errors.NotDone):
                await disk.jobs.delete(waiting.id)
            await disk.jobs.delete(job.id)
            with pytest.raises(errors.NotFound):
                await disk.jobs.get(job.id)
        else:
            await disk.retention(15).once()
            with pytest.raises(errors.Expired):
                await disk.jobs.get(job.id)
        assert disk.spool.job_ids() == [waiting.id]


async def test_a_failed_fsync_of_the_database_ends_its_use(
    tmp_path: Path, picture: Picture
) -> None:
    """What an fsync could not write is forgotten by the system: no second try on that file.

    The sender hears that the outcome is unknown, and the next start knows it.
    """
    database = Faulty()
    async with opened(tmp_path, commit=database.commit) as disk:
        first = await disk.jobs.submit(await ask(disk.jobs, picture(1), 1), "test")
        request = await ask(disk.jobs, picture(2), 2)
        database.error = sqlite3.OperationalError("disk I/O error")
        with pytest.raises((errors.Internal, errors.EngineUnavailable)):
            await disk.jobs.submit(request, "test", key="k")
        database.error = None
        with pytest.raises(errors.EngineUnavailable):
            await disk.jobs.get(first.id)
        async with asyncio.timeout(20):
            with pytest.raises(BrokenStoreError):
                await disk.store.watch()
    async with opened(tmp_path) as disk:
        await disk.jobs.recover()
        assert await disk.store.ids() == [first.id] == disk.spool.job_ids()
        await disk.jobs.submit(request, "test", key="k")


async def test_a_daemon_ends_with_its_store(
    make_settings: Callable[..., Any], picture: Picture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It does not go on serving from a file that cannot be trusted; the next one does."""
    database = Faulty()
    monkeypatch.setattr(daemon_module.Store, "open", partial(Store.open, commit=database.commit))
    with pytest.raises(ExceptionGroup) as caught:
        async with Daemon(make_settings()).running() as daemon:
            image = await daemon.jobs.staging.put(picture(), "a.png")
            request = EditRequest.parse({"images": [image], "prompt": "invert"})
            job = await daemon.jobs.submit(request, "test")
            await daemon.jobs.wait(job.id, 30)
            database.error = sqlite3.DatabaseError("database disk image is malformed")
            with pytest.raises(errors.VellumError):
                await daemon.jobs.submit(request, "test")
            await daemon.stopped()
    assert caught.group_contains(BrokenStoreError)
    database.error = None
    async with Daemon(make_settings()).running() as daemon:
        assert (await daemon.jobs.get(job.id)).status is JobStatus.DONE


async def test_a_locked_database_loses_no_answer(
    tmp_path: Path, picture: Picture, monkeypatch: pytest.MonkeyPatch, full: bool
) -> None:
    """Locked for long: intake says so each time; what was accepted is there, the rest is not."""
    held_s = 60 if full else 2
    if not full:
        monkeypatch.setattr(schema, "BUSY_S", 0.2)
    async with opened(tmp_path) as disk:
        request = await ask(disk.jobs, picture(), 1)
        accepted = [(await disk.jobs.submit(request, "test")).id]
        rude = sqlite3.connect(tmp_path / NAME, isolation_level=None)
        rude.execute("BEGIN EXCLUSIVE")
        refused, end = 0, asyncio.get_running_loop().time() + held_s
        while asyncio.get_running_loop().time() < end or refused < 5:
            with pytest.raises(errors.EngineUnavailable) as caught:
                await disk.jobs.submit(request, "test")
            assert caught.value.status == 503
            refused += 1
        rude.execute("ROLLBACK")
        rude.close()
        accepted.append((await disk.jobs.submit(request, "test")).id)
        assert await disk.store.ids() == accepted
    async with opened(tmp_path) as disk:  # folders of refused requests are swept
        await disk.jobs.recover()
        assert disk.spool.job_ids() == accepted


async def test_a_read_only_folder_refuses_before_any_work(tmp_path: Path, picture: Picture) -> None:
    """Seen at intake, shown as not writable, and over as soon as it can be written again."""
    may_write = True
    async with opened(tmp_path, writable=lambda folder: may_write) as disk:
        request = await ask(disk.jobs, picture(), 1)
        may_write = False
        with pytest.raises(errors.EngineUnavailable, match="cannot be written") as caught:
            await disk.jobs.submit(request, "test")
        assert caught.value.retry_after
        assert disk.room.public()["writable"] is False
        may_write = True
        assert disk.room.public()["open"] is True
        await disk.jobs.submit(request, "test")


def test_a_failed_fsync_is_heard_by_all_who_share_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The system tells a failure once; no sharer may take another's call for its own."""
    sync = SharedSync(tmp_path)
    under_way, go_on = threading.Event(), threading.Event()
    calls = iter(range(3))

    def fsync_dir(folder: Path) -> None:
        call = next(calls)
        if call == 0:
            under_way.set()
            assert go_on.wait(10)
        if call == 1:
            raise os_error(errno.EIO)

    monkeypatch.setattr(platform, "fsync_dir", fsync_dir)
    with ThreadPoolExecutor(4) as threads:
        first = threads.submit(sync)
        assert under_way.wait(10)
        sharing = [threads.submit(sync) for _ in range(3)]
        while sync._latest < 4:
            assert not any(one.done() for one in sharing)
        go_on.set()
        assert first.exception() is None
        assert all(isinstance(one.exception(), OSError) for one in sharing)
    sync()
    assert next(calls, None) is None
