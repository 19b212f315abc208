"""Retention: what is old goes in order, what is owed stays, and a kill harms nothing."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import secrets
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.jobs_on_disk import NAME, OnDisk, ask, opened
from vellumd import errors
from vellumd.models import Job, JobStatus, ResolvedEdit, new_job_id
from vellumd.store.room import GB, Usage
from vellumd.store.spool import STAGED_S

Picture = Callable[..., bytes]


def names(disk: OnDisk, job: Job) -> set[str]:
    """What lies in a job's folder."""
    folder = disk.spool.folder(job.id)
    return {file.name for file in folder.iterdir()} if folder.exists() else set()


async def expired(disk: OnDisk, job: Job) -> bool:
    """Whether only the job's id is left."""
    with contextlib.suppress(errors.Expired):
        await disk.jobs.get(job.id)
        return False
    assert not disk.spool.folder(job.id).exists()
    return True


async def test_an_old_job_goes_in_steps(tmp_path: Path, picture: Picture) -> None:
    """Until 14 days it is whole; then only its id is left, and after 90 days not even that."""
    async with opened(tmp_path) as disk:
        job = await disk.finish(picture(), 1)
        waiting = await disk.jobs.submit(await ask(disk.jobs, picture(), 2), "test", key="k")
        await disk.retention(13.9).once()
        assert "input-1.png" in names(disk, job)
        await disk.retention(14.1).once()
        assert await expired(disk, job)
        for call in (disk.jobs.result, disk.jobs.input):
            with pytest.raises(errors.Expired):
                await call(job.id, 1)
        with pytest.raises(errors.Expired):
            await disk.jobs.retry(job.id, "test")
        left = await disk.store.get(job.id)
        assert left.status is JobStatus.DONE and left.request is None and left.meta is None
        await disk.retention(90.1).once()
        with pytest.raises(errors.NotFound):
            await disk.jobs.get(job.id)
        assert (await disk.jobs.get(waiting.id)).status is JobStatus.QUEUED
        assert await disk.store.last_seq() == 4


def tellers(folder: Path) -> list[str]:
    """Files that hold the prompt of job 12345."""
    files = [file for file in folder.rglob("*") if file.is_file()]
    return [file.name for file in files if b"make it 12345" in file.read_bytes()]


async def test_the_prompt_is_erased(tmp_path: Path, picture: Picture) -> None:
    """No file of the store holds it any more after a stop."""
    async with opened(tmp_path) as disk:
        await disk.finish(picture(), 12345)
    assert NAME in tellers(tmp_path)
    async with opened(tmp_path) as disk:
        await disk.retention(15).once()
    assert tellers(tmp_path) == []


async def test_what_is_owed_stays_until_it_is_given_up(tmp_path: Path, picture: Picture) -> None:
    """A pending delivery keeps its job, for as long as its transport tries; then it ages."""
    async with opened(tmp_path, retention_days=2) as disk:
        job = await disk.finish(picture(), 1, reply={"to": "me"})
        waits = await disk.jobs.submit(await ask(disk.jobs, picture(), 2), "test", reply=1)
        await disk.retention(6.9).once()
        assert len(await disk.store.pending_deliveries("test")) == 1
        assert "input-1.png" in names(disk, job)
        await disk.retention(1.5, test=86_400.0).once()
        assert await disk.store.pending_deliveries("test") == []
        assert "input-1.png" in names(disk, job)
        await disk.retention(2.1, test=86_400.0).once()
        assert await expired(disk, job) and not await expired(disk, waits)


async def test_an_unknown_transports_delivery_is_tried_for_a_week(
    tmp_path: Path, picture: Picture
) -> None:
    """Its plugin may come back."""
    async with opened(tmp_path) as disk:
        await disk.finish(picture(), 1, reply=1)
        await disk.retention(7.1).once()
        assert await disk.store.pending_deliveries("test") == []


async def test_without_retention_a_job_goes_once_it_is_delivered(
    tmp_path: Path, picture: Picture
) -> None:
    """With none to deliver, or one that cannot be, it is there for an hour."""
    async with opened(tmp_path, retention_days=0) as disk:
        plain = await disk.finish(picture(1), 1)
        told = await disk.finish(picture(2), 2, reply=1)
        lost = await disk.finish(picture(3), 3, reply=1)
        await disk.retention().once()
        assert not [job for job in (plain, told, lost) if await expired(disk, job)]
        for row, state in zip(
            await disk.store.pending_deliveries("test"), ["delivered", "undeliverable"], strict=True
        ):
            await disk.store.settle_delivery(row.number, state, None, 0)
        await disk.retention().once()
        assert [await expired(disk, job) for job in (plain, told, lost)] == [False, True, False]
        await disk.retention(1.01 / 24).once()
        assert await expired(disk, plain) and await expired(disk, lost)


def an_hour_passes(disk: OnDisk) -> None:
    """Nothing that is staged is of the last hour any more."""
    past = time.time() - STAGED_S - 1
    for file in (disk.spool.root / "staged").iterdir():
        os.utime(file, (past, past))


def used(disk: OnDisk) -> int:
    """Bytes that are really there."""
    fresh = Usage()
    fresh.measure(disk.spool.root)
    return fresh.bytes


async def test_room_is_made_from_the_oldest(tmp_path: Path, picture: Picture) -> None:
    """First inputs go, oldest first, then folders; no more than is needed; all is counted."""
    size = (500, 400)
    one = len(picture(0, size, "BMP"))
    async with opened(tmp_path, max_gb=20.5 * one / GB) as disk:
        jobs = [await disk.finish(picture(n, size, "BMP"), n) for n in range(10)]
        assert abs(disk.spool.usage.bytes - used(disk)) < one / 10
        an_hour_passes(disk)
        await disk.retention().once()
        assert all("input-1.bmp" in names(disk, job) for job in jobs)
        jobs += [await disk.finish(picture(n, size, "BMP"), n) for n in range(10, 15)]
        an_hour_passes(disk)
        await disk.retention().once()
        there = ["input-1.bmp" in names(disk, job) for job in jobs]
        assert there == [False] * 10 + [True] * 5
        assert all("result-1.png" in names(disk, job) for job in jobs)
        jobs += [await disk.finish(picture(n, size, "BMP"), n) for n in range(15, 25)]
        an_hour_passes(disk)
        await disk.retention().once()
        gone = [await expired(disk, job) for job in jobs]
        assert gone == [True] * 5 + [False] * 20
        assert disk.spool.usage.bytes <= disk.room.limit
        assert abs(disk.spool.usage.bytes - used(disk)) < one / 10


async def test_what_was_sent_can_be_named_for_an_hour(tmp_path: Path, picture: Picture) -> None:
    """However short the room: results go before it, then intake stops until the hour is over."""
    size = (500, 400)
    one = len(picture(0, size, "BMP"))
    async with opened(tmp_path, max_gb=3.5 * one / GB) as disk:
        requests = [await ask(disk.jobs, picture(n, size, "BMP"), n) for n in range(3)]
        job = await disk.finish(picture(0, size, "BMP"), 0)
        await disk.retention().once()
        assert await expired(disk, job) and disk.spool.usage.bytes <= disk.room.limit
        for request in requests:
            job = await disk.jobs.submit(request, "test")
            assert await disk.jobs.claim(0)
            await disk.jobs.failed(job.id, errors.BadOutput("Black."))
        requests.append(await ask(disk.jobs, picture(3, size, "BMP"), 3))
        await disk.retention().once()
        with pytest.raises(errors.StorageFull):
            await disk.jobs.staging.put(picture(4, size, "BMP"), "a.bmp")
        for request in requests:
            assert await disk.jobs.staging.find(request.images[0].sha256)
        an_hour_passes(disk)
        await disk.retention().once()
        assert await disk.jobs.staging.put(picture(4, size, "BMP"), "a.bmp")


async def test_a_job_is_deleted_while_room_is_made(
    tmp_path: Path, picture: Picture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Retention goes on with the next one."""
    async with opened(tmp_path, max_gb=1e-9) as disk:
        first, second, third = [await disk.finish(picture(n), n) for n in range(3)]
        an_hour_passes(disk)
        loop, remove_inputs = asyncio.get_running_loop(), disk.spool.remove_inputs

        def meanwhile(job_id: str, edit: ResolvedEdit) -> bool:
            if job_id == first.id:
                deleting = disk.jobs.delete(second.id)
                asyncio.run_coroutine_threadsafe(deleting, loop).result(10)
            return remove_inputs(job_id, edit)

        monkeypatch.setattr(disk.spool, "remove_inputs", meanwhile)
        await disk.retention().once()
        assert await expired(disk, first) and await expired(disk, third)


async def test_full_of_what_must_stay_means_storage_full(tmp_path: Path, picture: Picture) -> None:
    """Waiting jobs are no room to make: intake stops, and goes on once one has ended."""
    size = (500, 400)
    one = len(picture(0, size, "BMP"))
    async with opened(tmp_path, max_gb=2.5 * one / GB) as disk:
        for n in range(3):
            await disk.jobs.submit(await ask(disk.jobs, picture(n, size, "BMP"), n), "test")
        await disk.retention().once()
        with pytest.raises(errors.StorageFull) as caught:
            await ask(disk.jobs, picture(3, size, "BMP"), 3)
        assert caught.value.retry_after and disk.room.wanted.is_set()
        running = await disk.jobs.claim(0)
        assert running
        await disk.jobs.failed(running.id, errors.BadOutput("Black."))
        an_hour_passes(disk)
        await disk.retention().once()
        assert await disk.jobs.submit(await ask(disk.jobs, picture(3, size, "BMP"), 3), "test")


async def test_intake_stops_at_the_reserve(tmp_path: Path, picture: Picture) -> None:
    """Below it nothing comes in, what is known is still answered, and it goes on by itself."""
    left = 3 * GB

    async with opened(tmp_path, free=lambda folder: left, reserve_gb=2) as disk:
        request = await ask(disk.jobs, picture(), 1)
        job = await disk.jobs.submit(request, "test", key="k")
        left = 2 * GB - 1
        with pytest.raises(errors.StorageFull, match="reserve_gb") as caught:
            await ask(disk.jobs, picture(), 2)
        assert caught.value.retry_after == 60
        with pytest.raises(errors.StorageFull):
            await disk.jobs.submit(request, "test")
        assert (await disk.jobs.submit(request, "test", key="k")).id == job.id
        left = 2 * GB
        assert await disk.jobs.submit(await ask(disk.jobs, picture(), 2), "test")


async def test_uploads_and_strays(tmp_path: Path, picture: Picture) -> None:
    """An upload lives for an hour; a folder without a job goes, if it is not on its way.

    What has no job's name is not ours, and stays.
    """
    async with opened(tmp_path) as disk:
        image = await disk.jobs.staging.put(picture(), "a.png")
        old, young, foreign = (
            disk.spool.root / name for name in (new_job_id(), new_job_id(), "holiday")
        )
        past = time.time() - STAGED_S - 1
        for folder in (old, young, foreign):
            folder.mkdir()
        for folder in (old, foreign):
            os.utime(folder, (past, past))
        await disk.retention().once()
        await disk.retention().tidy()
        assert await disk.jobs.staging.find(image.sha256)
        assert young.exists() and foreign.exists() and not old.exists()
        os.utime(disk.spool.root / "staged" / image.sha256, (past, past))
        await disk.retention().once()
        with pytest.raises(errors.NotFound):
            await disk.jobs.staging.find(image.sha256)


async def test_a_folder_that_is_not_ours_to_read(
    tmp_path: Path,
    picture: Picture,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Such as a disk's lost+found: start and retention go on without it, told once."""
    locked = tmp_path / "spool" / "lost+found"
    locked.mkdir(parents=True)
    scandir = os.scandir

    def denied(folder: Any) -> Any:
        if not isinstance(folder, int) and os.fspath(folder) == str(locked):
            raise PermissionError(13, "Permission denied", str(locked))
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", denied)
    async with opened(tmp_path, max_gb=1e-9) as disk:
        await disk.jobs.recover()
        job = await disk.finish(picture(), 1)
        an_hour_passes(disk)
        for _ in range(2):
            await disk.retention().tidy()
            await disk.retention().once()
        assert await expired(disk, job)
    assert locked.exists() and caplog.text.count("lost+found") == 1


async def test_intake_goes_on_beside_it(tmp_path: Path, picture: Picture, full: bool) -> None:
    """While many jobs are removed, adding and claiming one stays quick.

    Nearly each; half of them when not full, since other tests may have the disk.
    """
    count = 10_000 if full else 200
    async with opened(tmp_path) as disk:
        for n in range(count):
            await disk.finish(picture(0), n)
        took = []
        async with asyncio.TaskGroup() as tasks:
            removing = tasks.create_task(disk.retention(15).once())
            while not removing.done():
                request = await ask(disk.jobs, picture(1), 1)
                began = time.perf_counter()
                await disk.jobs.submit(request, "test")
                await disk.jobs.claim(0)
                took.append(time.perf_counter() - began)
        took.sort()
        p99 = took[int(len(took) * 0.99)]
        print(f"{count} jobs removed; add and claim p50 {took[len(took) // 2] * 1000:.1f} ms, "
              f"p99 {p99 * 1000:.1f} ms")  # fmt: skip
        assert disk.store.tally["done"] == count
        assert (p99 if full else took[len(took) // 2]) < 0.1


REMOVE = """
import asyncio, sys
from pathlib import Path
from tests.jobs_on_disk import opened
async def main():
    async with opened(Path(sys.argv[1]), max_gb=1e-9) as disk:
        await disk.jobs.recover()
        await disk.retention().tidy()
        print("now", flush=True)
        await disk.retention(float(sys.argv[2])).once()
asyncio.run(main())
"""


async def test_a_kill_leaves_rows_and_folders_in_step(
    tmp_path: Path, picture: Picture, full: bool
) -> None:
    """Killed anywhere in its removals, after a restart every folder has a row that knows it."""
    seed = secrets.randbits(32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    async with opened(tmp_path) as disk:
        jobs = [await disk.finish(picture(n), n) for n in range(150)]
    kills = 60 if full else 6
    for life in range(kills + 1):  # the last is not killed, so that something is removed
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", REMOVE, str(tmp_path),
            str(chance.choice([0, 15]) if life < kills else 15),
            stdout=asyncio.subprocess.PIPE,
        )  # fmt: skip
        assert process.stdout and await process.stdout.readline()
        if life < kills:
            await asyncio.sleep(chance.uniform(0, 0.15))
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signal.SIGKILL)
        await process.communicate()
        async with opened(tmp_path) as disk:
            assert disk.store.rebuilt is None
            await disk.jobs.recover()
            folders = set(disk.spool.job_ids())
            kept = {job.id for job in jobs if not await expired(disk, job)}
            assert folders == kept
            for job in jobs:
                if job.id in kept:
                    assert (await disk.jobs.result(job.id, 1)).exists()
    assert len(kept) < len(jobs)
