"""Backups as docs/operations.md describes them bring everything back."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path

from tests.test_daemon import finish, submit
from vellumd.daemon import Daemon
from vellumd.jobs import JobFilter
from vellumd.models import Job, JobStatus
from vellumd.store.spool import sha256_of

Run = Callable[..., AbstractAsyncContextManager[Daemon]]
Picture = Callable[..., bytes]

DATABASE = shutil.ignore_patterns("jobs.sqlite", "jobs.sqlite-*")
"""What the rsync of docs/operations.md leaves out."""


async def fill(daemon: Daemon, picture: Picture) -> tuple[list[Job], Job]:
    """Three jobs that are done, and one that waits."""
    done = [await finish(daemon, await submit(daemon, picture(n))) for n in range(3)]
    await daemon.executor.pause()
    return done, await submit(daemon, picture(9), priority=5)


async def is_back(daemon: Daemon, done: list[Job], waiting: Job) -> None:
    """Every result matches its hash, and the job that waited can be done."""
    for job in done:
        found = await daemon.jobs.get(job.id)
        assert found.status is JobStatus.DONE
        assert sha256_of(await daemon.jobs.result(job.id, 1)) == job.results[0].sha256
    assert (await daemon.jobs.get(waiting.id)).request == waiting.request
    await daemon.executor.resume()
    assert (await finish(daemon, waiting)).status is JobStatus.DONE


async def test_a_copy_of_a_stopped_daemon(
    run_daemon: Run, picture: Picture, tmp_path: Path
) -> None:
    """The folder, copied and put elsewhere, is the same daemon, pause and all."""
    async with run_daemon() as daemon:
        done, waiting = await fill(daemon, picture)
    shutil.copytree(tmp_path / "data", tmp_path / "copy")
    async with run_daemon(store={"dir": tmp_path / "copy"}) as daemon:
        assert await daemon.jobs.is_paused(0) and not daemon.rebuilt
        await is_back(daemon, done, waiting)


async def test_a_copy_of_a_running_daemon(
    run_daemon: Run, picture: Picture, tmp_path: Path
) -> None:
    """Without the database, but with its mark, the rows come back from the folders."""
    async with run_daemon() as daemon:
        done, waiting = await fill(daemon, picture)
        shutil.copytree(tmp_path / "data", tmp_path / "copy", ignore=DATABASE)
    assert (
        not list((tmp_path / "copy").glob("jobs.sqlite"))
        and (tmp_path / "copy/jobs.sqlite.mark").exists()
    )
    async with run_daemon(store={"dir": tmp_path / "copy"}) as daemon:
        assert [warning["code"] for warning in daemon.info()["warnings"]] == ["store_rebuilt"]
        assert await daemon.jobs.is_paused(0)
        await is_back(daemon, done, waiting)


async def test_back_to_the_schema_before(run_daemon: Run, picture: Picture, tmp_path: Path) -> None:
    """An older database in its place, without mark and log, is taken as it is."""
    async with run_daemon() as daemon:
        done = [await finish(daemon, await submit(daemon, picture(n))) for n in range(2)]
    old = tmp_path / "old.sqlite"
    shutil.copy(tmp_path / "data/jobs.sqlite", old)
    async with run_daemon() as daemon:
        later = await finish(daemon, await submit(daemon, picture(7)))
    for ending in ("-wal", "-shm", ".mark"):
        (tmp_path / f"data/jobs.sqlite{ending}").unlink(missing_ok=True)
    shutil.copy(old, tmp_path / "data/jobs.sqlite")
    async with run_daemon() as daemon:
        assert not daemon.rebuilt
        known = {job.id for job in (await daemon.jobs.list(JobFilter(), None)).jobs}
        assert known == {job.id for job in done} and later.id not in known
