"""Folders full of files, from writers of every kind: each once, whole, soon, and cheaply."""

from __future__ import annotations

import asyncio
import hashlib
import os
import random
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import psutil
import pytest
from PIL import Image

from tests.conftest import Record
from tests.plugins.hotfolder.conftest import encoded
from tests.trust import writers
from vellumd.daemon import Daemon
from vellumd.jobs import JobFilter
from vellumd.models import Job
from vellumd.testing.process import DaemonProcess
from vellumd_hotfolder import plan, reporter, scan
from vellumd_hotfolder.settle import StabilityTracker

PATIENCE_S = 900.0


@asynccontextmanager
async def folder(settings: Any, root: Path, **section: Any) -> AsyncIterator[Daemon]:
    """A daemon with a hot folder, its inbox there."""
    settings.plugins["hotfolder"] = {"root": str(root), "prompt": "p", **section}
    async with Daemon(settings).running() as daemon:
        while not (root / "inbox").is_dir():
            await asyncio.sleep(0.02)
        yield daemon


async def all_jobs(daemon: Daemon, source: str | None = None) -> list[Job]:
    """All jobs of the store."""
    found: list[Job] = []
    cursor = None
    while True:
        page = await daemon.jobs.list(JobFilter(source=source), cursor)
        found += page.jobs
        if (cursor := page.next) is None:
            return found


async def outcome(outbox: Path, count: int) -> None:
    """Wait until so many results are there."""
    end = time.monotonic() + PATIENCE_S
    while sum(len(files) for _, _, files in os.walk(outbox)) < count:
        assert time.monotonic() < end, "results are missing"
        await asyncio.sleep(0.2)


@pytest.mark.timeout(1800)
async def test_nine_kinds_of_writer(
    tmp_path: Path, make_settings: Any, full: bool, record: Record
) -> None:
    """1,000 files (a tenth otherwise): one right job each, none partial, none twice, and soon.

    Soon are nearly all in full, half of them otherwise: other tests may have the machine.
    """
    count, seed = 1000 if full else 100, random.SystemRandom().randrange(2**32)
    settle_s = 2.0 if full else 0.6
    dice = random.Random(seed)
    inbox, written = tmp_path / "root" / "inbox", {}
    last: dict[str, float] = {}

    async def one(number: int) -> None:
        kind = writers.KINDS[number % len(writers.KINDS)]
        format, ending = [("JPEG", "jpg"), ("WEBP", "webp"), ("PNG", "png")][number // 9 % 3]
        name = f"{number}-{kind.__name__}.{ending}"
        data = encoded(number, format, (320 + number % 50, 240))
        written[name] = hashlib.sha256(data).hexdigest()
        await asyncio.sleep(dice.uniform(0, count / 25))
        job = writers.Job(inbox / name, data, settle_s * 1.3, dice)
        last[name] = await writers.write(kind, job)

    section = {"settle_s": settle_s, "incomplete_s": 60}
    async with folder(make_settings(), tmp_path / "root", **section) as daemon:
        async with asyncio.TaskGroup() as group:
            for number in range(count):
                group.create_task(one(number))
        await outcome(tmp_path / "root/outbox", count)
        jobs = await all_jobs(daemon)
    taken = {job.request.images[0].name: job for job in jobs if job.request}
    took = sorted(taken[name].created.timestamp() - at for name, at in last.items())
    figures = {
        "files": count, "seed": seed, "jobs": len(jobs), "settle_s": settle_s,
        "p50_s": round(took[len(took) // 2], 3),
        "p99_s": round(took[int(len(took) * 0.99) - 1], 3), "worst_s": round(took[-1], 3),
    }  # fmt: skip
    record("hotfolder-writers", figures)
    wrong = [n for n, job in taken.items() if job.request.images[0].sha256 != written[n]]
    assert wrong == []
    assert len(jobs) == len(taken) == count
    assert not list((tmp_path / "root/failed").iterdir())
    assert figures["p99_s" if full else "p50_s"] <= settle_s + 0.5


def fill(inbox: Path, count: int) -> None:
    """So many small pictures, in ten folders."""
    data = encoded(1, size=(32, 32))
    for number in range(count):
        folder = inbox / str(number * 10 // count)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number}.png").write_bytes(data + b"%d" % number)


def test_a_scan_is_cheap(tmp_path: Path, full: bool, record: Record) -> None:
    """20,000 settled files (a tenth otherwise): a second of CPU at most."""
    count = 20_000 if full else 2_000
    fill(tmp_path, count)
    tracker = StabilityTracker(0, 60)
    took = []
    for _ in range(3):
        began = time.process_time()
        planned = plan.make(scan.survey(tmp_path).inbox, 4, require_ready=False)
        tracker.look({key: order.signature for key, order in planned.orders.items()}, 1.0)
        settled = tracker.settled(1.0)
        took.append(round(time.process_time() - began, 3))
        assert len(settled) == count
    record("hotfolder-scan", {"files": count, "cpu_s": took})
    assert min(took) <= count / 20_000


@pytest.mark.timeout(1800)
def test_all_at_once(tmp_path: Path, full: bool, record: Record) -> None:
    """20,000 files (a tenth otherwise) dropped while the daemon is stopped: all are found.

    All are edited in full; otherwise those of one folder, and the others are told as waiting.
    """
    count = 20_000 if full else 2_000
    edited, text = (count, "prompt.txt") if full else (count // 10, "3/each.txt")
    root = tmp_path / "root"
    daemon = DaemonProcess(tmp_path, "hotfolder", {"root": root, "settle_s": 0.5})
    try:
        daemon.start()
        daemon.until((root / "STATUS.txt").exists, "the first status")
        assert daemon._process is not None
        before = psutil.Process(daemon._process.pid).memory_info().rss
        assert daemon.stop(15) == 0
        fill(root / "inbox", count)
        (root / "inbox" / text).write_text("invert")
        began, most = time.monotonic(), 0
        daemon.start()
        process = psutil.Process(daemon._process.pid)

        def over() -> bool:
            status = (root / "STATUS.txt").read_text("utf-8-sig")
            waiting = f"{count - edited} waiting" if edited < count else ""
            found = sum(len(files) for _, _, files in os.walk(root / "outbox"))
            return waiting in status and found == edited

        while not over():
            assert time.monotonic() < began + PATIENCE_S, "results are missing"
            most = max(most, process.memory_info().rss)
            time.sleep(0.5)
        took = round(time.monotonic() - began, 1)
        assert len(daemon.jobs()) == edited
        grown = round((most - before) / 1e6, 1)
        figures = {"files": count, "rss_growth_mb": grown, "all_done_s": took}
        record("hotfolder-at_once", figures)
        assert grown <= 100
    finally:
        daemon.close()


@pytest.mark.timeout(1800)
async def test_a_wedding(
    tmp_path: Path, make_settings: Any, monkeypatch: pytest.MonkeyPatch, full: bool, record: Record
) -> None:
    """300 JPEGs with each.txt: 300 results with names, EXIF and profile; the broken one named."""
    from PIL import ImageCms

    count = 300 if full else 30
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    root = tmp_path / "root"
    wedding = root / "inbox" / "Wedding"
    section = {"settle_s": 0.5, "incomplete_s": 1}
    if not full:
        monkeypatch.setattr(reporter, "WRITE_S", 0.5)
    async with folder(make_settings(), root, **section) as daemon:
        wedding.mkdir()
        (wedding / "each.txt").write_text("brighten")
        for number in range(count):
            exif = Image.Exif()
            exif[0x0132] = f"2026:05:23 {number // 60:02}:{number % 60:02}:00"
            image = Image.linear_gradient("L").convert("RGB").rotate(number)
            image.save(wedding / f"IMG_{number:04}.JPG", exif=exif, icc_profile=profile)
        (wedding / "IMG_9999.JPG").write_bytes(encoded(1, "JPEG")[:-40])
        await outcome(root / "outbox", count)
        while "IMG_9999" not in (root / "STATUS.txt").read_text("utf-8-sig"):
            await asyncio.sleep(0.2)
        assert len(await all_jobs(daemon)) == count
    found = {}
    for file in (root / "outbox/Wedding").iterdir():
        with Image.open(file) as result:
            found[file.name] = result.getexif()[0x0132]
            assert result.info["icc_profile"] == profile
    assert sorted(found, key=found.__getitem__) == [f"IMG_{n:04}.JPG" for n in range(count)]
    record("hotfolder-wedding", {"files": count, "results": len(found)})


@pytest.mark.timeout(1800)
async def test_others_do_not_wait_for_a_folder(
    tmp_path: Path, make_settings: Any, full: bool, record: Record
) -> None:
    """A folder of 5,000 (500 otherwise): a user's job starts after two others at most."""
    count = 5_000 if full else 500
    root = tmp_path / "root"
    ledger = tmp_path / "ledger"
    settings = make_settings({"step_s": 0.02}, http={})
    async with folder(settings, root, settle_s=0.2) as daemon:
        await daemon.executor.pause()  # on a busy machine edits could keep pace with the folder
        fill(root / "inbox", count)
        async with asyncio.timeout(PATIENCE_S):
            while daemon.jobs.queue()["queued"] < count:
                await asyncio.sleep(0.2)
            await daemon.executor.resume()
            while not ledger.exists():
                await asyncio.sleep(0.02)
        ahead = []
        for number in range(5):
            before = len(ledger.read_text().splitlines())
            form = aiohttp.FormData({"prompt": "p"})
            form.add_field("images", encoded(1000 + number), filename="u.png")
            async with (
                aiohttp.ClientSession(daemon.urls[0], headers={"Prefer": "wait=60"}) as user,
                user.post("/v1/jobs", data=form) as answer,
            ):
                job = await answer.json()
            assert job["status"] == "done"
            order = [line.split()[0] for line in ledger.read_text().splitlines()]
            ahead.append(order.index(job["id"]) - before)
        record("hotfolder-fairness", {"files": count, "jobs_ahead": ahead})
    assert max(ahead) <= 2
