"""What goes wrong around a folder: disks, writers, people, other daemons."""

from __future__ import annotations

import asyncio
import csv
import errno
import os
import threading
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import pytest

from tests.plugins.hotfolder.conftest import QUICK, Drop, OpenDrop, encoded
from vellumd import errors, platform
from vellumd.daemon import Daemon
from vellumd.jobs import JobFilter
from vellumd.settings import Settings
from vellumd_hotfolder import boxes, intake, plan, scan, taker, watch
from vellumd_hotfolder import root as root_module
from vellumd_hotfolder.claims import Changed, Claims
from vellumd_hotfolder.moves import move_new
from vellumd_hotfolder.plan import Order
from vellumd_hotfolder.report import Report, failures


async def test_a_folder_that_goes_away_and_comes_back(drop: OpenDrop, tmp_path: Path) -> None:
    """Nothing is made on the empty mount point, nothing is lost, and changes are told again."""
    async with drop(prompt="wait", scan_s=0.3) as folder:
        folder.put("a.png", encoded(1))
        folder.put("b.png", encoded(2))
        claims = folder.root / ".work"
        await folder.until(lambda: len(list(claims.glob("*/*"))) == 2, "two claims")
        away = folder.root.with_name("away")
        folder.root.rename(away)
        folder.root.mkdir()
        (tmp_path / "go").touch()
        doors = folder.daemon.transports.doors

        await folder.until(lambda: not doors["hotfolder"].ok, "the door's trouble")
        assert "not there" in doors["hotfolder"].text
        await asyncio.sleep(1)
        assert list(folder.root.iterdir()) == []
        folder.root.rmdir()
        away.rename(folder.root)
        await folder.out("a.png", "b.png")
        await folder.until(lambda: doors["hotfolder"].ok, "the end of the trouble")
        folder.put("c.png", encoded(3))
        await folder.out("a.png", "b.png", "c.png")
        assert len(await folder.jobs()) == 3


async def test_a_disk_that_goes_away_in_the_middle_of_taking(
    drop: OpenDrop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was half taken is found again; the door goes on."""
    real, broken = Claims.take, iter([True])

    def take(self: Claims, order: Order, job_id: str) -> list[Path]:
        taken = real(self, order, job_id)
        if next(broken, False):
            raise OSError(errno.EIO, "Input/output error")
        return taken

    monkeypatch.setattr(Claims, "take", take)
    async with drop(prompt="p") as folder:
        folder.put("a.png", encoded(1))
        await folder.out("a.png")
        assert folder.daemon.transports.doors["hotfolder"].crashes == 0
        assert len(await folder.jobs()) == 1


def test_a_disk_that_is_away_is_no_claim_that_is_over(tmp_path: Path) -> None:
    """A result whose folder is gone with its disk is still owed."""
    root = root_module.Root(tmp_path / "root", "store")
    root.prepare(tmp_path)
    claims = Claims(root)
    assert boxes.deliver(root, claims, "job", "file", [], keep=True) == ("", [])
    (tmp_path / "root").rename(tmp_path / "away")
    with pytest.raises(FileNotFoundError):
        boxes.deliver(root, claims, "job", "file", [], keep=True)
    with pytest.raises(FileNotFoundError):
        boxes.refuse(root, claims, "job", "why")


async def test_a_folder_that_is_away_at_the_start(
    drop: OpenDrop, tmp_path: Path, make_settings: Callable[..., Settings]
) -> None:
    """A known folder that is missing is waited for by the next daemon, too."""
    root = tmp_path / "root"
    async with drop():
        pass
    root.rename(tmp_path / "away")
    root.mkdir()
    settings = make_settings()
    settings.plugins["hotfolder"] = {"root": str(root), "prompt": "p", **QUICK}
    async with Daemon(settings).running() as daemon:
        folder, doors = Drop(root, daemon), daemon.transports.doors
        await folder.until(lambda: "not there" in doors["hotfolder"].text, "the trouble")
        assert list(root.iterdir()) == []
        root.rmdir()
        (tmp_path / "away").rename(root)
        folder.put("a.png", encoded(1))
        await folder.out("a.png")


async def test_a_full_disk_is_waited_for(drop: OpenDrop, monkeypatch: pytest.MonkeyPatch) -> None:
    """No room for the result in the folder: it waits there, told in STATUS.txt, not failed."""
    real, full = platform.write_durably, True

    def write(path: Path, data: bytes, mode: int = 0o666) -> None:
        if full and ".partial" in str(path):
            raise OSError(errno.ENOSPC, "No space left on device")
        real(path, data, mode)

    monkeypatch.setattr(platform, "write_durably", write)
    async with drop(prompt="p") as folder:
        folder.put("a.png", encoded(1))
        status = folder.root / "STATUS.txt"
        await folder.until(
            lambda: status.exists() and "disk is full" in status.read_text("utf-8-sig"), "STATUS"
        )
        (job,) = await folder.jobs()
        assert job.status == "done"
        assert folder.names("failed") == folder.names("outbox") == set()
        full = False
        await folder.out("a.png")
        await folder.until(lambda: "full" not in status.read_text("utf-8-sig"), "STATUS")


async def test_a_closed_outbox_is_waited_for(drop: OpenDrop) -> None:
    """An outbox that cannot be written to holds results up; nothing fails."""
    async with drop(prompt="p") as folder:
        outbox = folder.root / "outbox"
        outbox.rmdir()
        outbox.write_text("in the way")  # root writes to read-only folders, but not into a file
        folder.put("a.png", encoded(1))
        doors = folder.daemon.transports.doors
        await folder.until(lambda: "cannot write" in doors["hotfolder"].text, "the trouble")
        assert folder.names("failed") == folder.names("done") == set()
        outbox.unlink()
        outbox.mkdir()
        await folder.out("a.png")


async def test_a_closed_disk_is_not_asked_on_and_on(
    drop: OpenDrop, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Where nothing can be taken, that is told once, and tried at a person's pace."""
    real, tries, closed = Claims.take, 0, True

    def take(self: Claims, order: Order, job_id: str) -> list[Path]:
        nonlocal tries
        tries += 1
        if closed:
            raise OSError(errno.EROFS, "Read-only file system")
        return real(self, order, job_id)

    monkeypatch.setattr(Claims, "take", take)
    async with drop(prompt="p") as folder:
        pictures = [f"{number}.png" for number in range(30)]
        for number, name in enumerate(pictures):
            folder.put(name, encoded(number))
        doors = folder.daemon.transports.doors
        with caplog.at_level("INFO", "vellumd.hotfolder"):
            await folder.until(lambda: "cannot write" in doors["hotfolder"].text, "the trouble")
            before, began = tries, time.monotonic()
            for number in range(20):  # what else happens there is no reason to ask
                folder.put(f"notes {number}.txt", "")
                await asyncio.sleep(0.05)
                assert "cannot write" in doors["hotfolder"].text
        times = (time.monotonic() - began) / 0.2 + 1
        assert tries - before <= times * intake.TOGETHER, "more often than every 0.2 s"
        assert caplog.text.count("Read-only file system") <= intake.TOGETHER
        closed = False
        await folder.out(*pictures)


async def test_a_file_deleted_replaced_or_touched_while_queued(
    drop: OpenDrop, tmp_path: Path
) -> None:
    """The job has its own copy; what comes under the name again is another job."""
    async with drop(prompt="wait") as folder:
        folder.put("a.png", encoded(1))
        while not await folder.jobs():
            await asyncio.sleep(0.02)
        next((folder.root / ".work").glob("*/*/a.png")).unlink()
        folder.put("a.png", encoded(2))
        os.utime(folder.inbox / "a.png")
        (tmp_path / "go").touch()
        await folder.until(lambda: len(folder.names("outbox")) == 2, "two results")
        found = {job.request.images[0].sha256 for job in await folder.jobs()}
        assert len(found) == 2


async def test_two_daemons_on_one_folder(
    drop: OpenDrop, tmp_path: Path, make_settings: Callable[..., Settings]
) -> None:
    """Each file is edited by one of them, with its own text."""
    async with drop(prompt="standing") as folder:
        other = make_settings(store={"dir": tmp_path / "other"})
        other.plugins["hotfolder"] = {
            "root": str(folder.root), "settle_s": 0.1, "scan_s": 0.3, "prompt": "standing",
        }  # fmt: skip
        async with Daemon(other).running() as second:
            for number in range(40):
                folder.put(f"{number}.txt", f"prompt {number}")
                folder.put(f"{number}.png", encoded(number))
            await folder.out(*(f"{number}.png" for number in range(40)))
            jobs = await folder.jobs() + (await second.jobs.list(JobFilter(), None)).jobs
            prompts = sorted(job.request.prompt for job in jobs)
            assert prompts == sorted(f"prompt {number}" for number in range(40))


async def test_a_full_queue_leaves_room_for_others(drop: OpenDrop) -> None:
    """A folder fills half of the queue; what waits longer waits in the inbox."""
    async with drop(prompt="p", limits={"queue": 6}, paper={"step_s": 0.02}) as folder:
        for number in range(12):
            folder.put(f"{number}.png", encoded(number))
        most = 0
        while len(folder.names("outbox")) < 12:
            most = max(most, folder.daemon.jobs.queue()["queued"])
            await asyncio.sleep(0.02)
        assert most <= 3


async def test_a_full_store_leaves_files_in_the_inbox(
    drop: OpenDrop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Intake that answers storage_full is asked again later; nothing fails."""
    async with drop(prompt="p") as folder:
        room = folder.daemon.jobs._room
        real = room.check

        def check() -> None:
            raise errors.StorageFull("The disk has less left than store.reserve_gb.")

        monkeypatch.setattr(room, "check", check)
        folder.put("a.png", encoded(1))
        status = folder.root / "STATUS.txt"
        await folder.until(
            lambda: status.exists() and "own disk is full" in status.read_text("utf-8-sig"),
            "STATUS",
        )
        assert folder.names("failed") == set()
        monkeypatch.setattr(room, "check", real)
        await folder.out("a.png")


async def test_a_file_in_use_is_left_alone(drop: OpenDrop) -> None:
    """A whole picture that somebody still has open for writing is not taken (Linux)."""
    async with drop(prompt="p") as folder:
        file = folder.put("a.png", encoded(1))
        handle = os.open(file, os.O_RDWR)
        try:
            folder.put("b.png", encoded(2))
            await folder.out("b.png")
            await asyncio.sleep(0.5)
            assert folder.names("inbox") == {"a.png"}
        finally:
            os.close(handle)
        await folder.out("a.png", "b.png")


async def test_a_share_is_no_reason_to_wait(
    drop: OpenDrop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """NFS and CIFS refuse leases on files that nobody writes: there they say nothing."""
    monkeypatch.setattr(watch, "on_network", lambda path: True)
    async with drop(prompt="p", settle_s=0.1, scan_s=0.2) as folder:
        handle = os.open(folder.put("a.png", encoded(1)), os.O_RDWR)
        try:
            await folder.out("a.png")
        finally:
            os.close(handle)


@pytest.mark.parametrize(
    ("number", "told"),
    [(errno.EACCES, "a.png: it cannot be moved"), (errno.EXDEV, "a.png: it lies on another disk")],
)
async def test_what_cannot_be_moved_is_told(
    drop: OpenDrop, monkeypatch: pytest.MonkeyPatch, number: int, told: str
) -> None:
    """A file that may not be taken is named in STATUS.txt, holds nobody up, and is tried again."""
    real, closed = os.rename, True

    def rename(source: Path, target: Path) -> None:
        if closed and Path(source).name == "a.png":
            raise OSError(number, os.strerror(number))
        real(source, target)

    monkeypatch.setattr(os, "rename", rename)
    monkeypatch.setattr(taker, "STUCK_S", 0.2)
    async with drop(prompt="p") as folder:
        folder.put("a.png", encoded(1))
        folder.put("b.png", encoded(2))
        await folder.out("b.png")
        await folder.until(lambda: told in folder.status(), "STATUS")
        closed = False
        await folder.out("a.png", "b.png")
        await folder.until(lambda: told not in folder.status(), "STATUS")


async def test_what_cannot_be_read_is_told(drop: OpenDrop, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file without the right to read it is named in STATUS.txt; its text is not used up."""
    real = platform.being_written

    def being_written(path: Path, *, on_share: bool = False) -> bool:
        if path.name == "a.png":
            raise PermissionError(errno.EACCES, "Permission denied")
        return real(path, on_share=on_share)

    monkeypatch.setattr(platform, "being_written", being_written)
    async with drop() as folder:
        folder.put("a.txt", "p")
        folder.put("a.png", encoded(1))
        await folder.until(lambda: "a.png: it cannot be read" in folder.status(), "STATUS")
        assert folder.names("inbox") == {"a.png", "a.txt"}


async def test_a_path_that_is_too_long(drop: OpenDrop) -> None:
    """It stays where it is, and is told."""
    async with drop(prompt="p") as folder:
        deep = folder.inbox
        while len(str(deep)) < 3400:
            deep = deep / ("d" * 200)
        deep.mkdir(parents=True)
        (deep / f"{'k' * 150}.png").write_bytes(encoded(1))
        folder.put("b.png", encoded(2))
        await folder.out("b.png")
        await folder.until(lambda: "its path is too long" in folder.status(), "STATUS")


def test_a_file_put_in_the_place_of_another(tmp_path: Path) -> None:
    """Another file of the same size and time is not what was looked at."""
    root = root_module.Root(tmp_path / "root", "store")
    root.prepare(tmp_path)
    file = root.inbox / "a.png"
    file.write_bytes(b"one")
    os.utime(file, (1, 1))
    order = plan.make(scan.survey(root.inbox).inbox, 4, require_ready=False).orders["a.png"]
    file.rename(tmp_path / "kept")
    file.write_bytes(b"two")
    os.utime(file, (1, 1))
    with pytest.raises(Changed):
        Claims(root).take(order, "job")
    assert file.read_bytes() == b"two"


async def test_a_report_that_is_held_and_one_that_was_cut_off(
    drop: OpenDrop, tmp_path: Path
) -> None:
    """Nothing waits for REPORT.csv; after a crash in a line the next begins anew."""
    report, cut_off = tmp_path / "root" / "REPORT.csv", tmp_path / "cut off"
    cut_off.write_bytes("\ufefftime,file,status,result,seconds,message,job\r\n2026-01".encode())
    report.parent.mkdir()
    report.symlink_to(tmp_path)  # what can be neither read nor written
    async with drop(prompt="p") as folder:
        folder.put("a.png", encoded(1))
        await folder.out("a.png")
        await folder.until(lambda: folder.status() != "", "STATUS")
        cut_off.replace(report)  # at once, or a report of its own could come between
        folder.put("b.png", encoded(2))
        await folder.until(lambda: "b.png" in report.read_text("utf-8-sig"), "the line")
        with report.open(encoding="utf-8-sig", newline="") as file:
            rows = [row for row in csv.reader(file) if len(row) == 7]
        assert sorted(row[1] for row in rows) == ["a.png", "b.png", "file"]
        assert all(datetime.fromisoformat(when) for when, *_ in rows[1:])  # on lines of their own


def test_a_report_is_added_to_while_it_is_written(tmp_path: Path) -> None:
    """No line is lost between the loop and the thread that writes."""
    report = Report(root_module.Root(tmp_path, "store"))

    def add() -> None:
        for number in range(3000):
            report.add_refused(str(number), "a.png", "why")

    adding = threading.Thread(target=add)
    adding.start()
    while adding.is_alive():
        report.write()
    report.write()
    with (tmp_path / "REPORT.csv").open(encoding="utf-8-sig", newline="") as file:
        jobs = [row[-1] for row in csv.reader(file)]
    assert jobs == ["job", *map(str, range(3000))]


def test_many_failures_are_told_quickly(tmp_path: Path) -> None:
    """Only those that are listed are read."""
    for number in range(3000):
        (tmp_path / f"{number}.png").touch()
        (tmp_path / f"{number}.error.txt").write_text(f"reason {number}\nmore")
    began = time.process_time()
    found = failures(tmp_path)
    assert time.process_time() - began < 1
    assert len(found) == 3000
    assert found[2] == ("2.png", "reason 2")


def test_loops_are_refused(tmp_path: Path) -> None:
    """A folder in a folder, and an outbox that leads into an inbox, refuse the start."""
    with pytest.raises(errors.ConfigError, match="lies in"):
        root_module.check({"a": tmp_path, "b": tmp_path / "inbox"})
    (tmp_path / "inbox").mkdir()
    (tmp_path / "outbox").symlink_to(tmp_path / "inbox")
    with pytest.raises(errors.ConfigError, match="is a link"):
        root_module.check({"a": tmp_path})
    with pytest.raises(errors.ConfigError, match="has no folder"):
        root_module.check({})


@pytest.mark.parametrize(("part", "to"), [("inbox", "outbox"), ("outbox", "inbox")])
async def test_a_loop_made_while_it_runs(drop: OpenDrop, part: str, to: str) -> None:
    """A part that becomes a link stops the folder, and says so, until it is a folder again."""
    async with drop(prompt="p", paper={"step_s": 0.02}) as folder:
        folder.put("a.png", encoded(1))
        await folder.out("a.png")
        (folder.root / part).rename(folder.root / "kept")
        (folder.root / part).symlink_to(folder.root / to)
        doors = folder.daemon.transports.doors
        (folder.root / "inbox" / "b.png").write_bytes(encoded(2))
        await folder.until(lambda: "is a link" in doors["hotfolder"].text, "the trouble")
        await asyncio.sleep(1)
        assert len(await folder.jobs()) <= 2
        (folder.root / part).unlink()
        (folder.root / "kept").rename(folder.root / part)
        folder.put("c.png", encoded(3))
        await folder.until(lambda: "c.png" in folder.names("outbox"), "the result")


def test_moving_writes_over_nothing(tmp_path: Path) -> None:
    """A taken name is refused; a move that was killed half way is ended by the next."""
    (tmp_path / "a").write_text("a")
    (tmp_path / "b").write_text("b")
    with pytest.raises(FileExistsError):
        move_new(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "b").read_text() == "b"
    os.link(tmp_path / "a", tmp_path / "c")
    move_new(tmp_path / "a", tmp_path / "c")
    assert not (tmp_path / "a").exists()
    assert (tmp_path / "c").read_text() == "a"


async def test_a_failure_that_cannot_be_told_harms_nobody(drop: OpenDrop) -> None:
    """What cannot be moved to failed goes back and is tried again; others go on."""
    async with drop(prompt="p", incomplete_s=0) as folder:
        await folder.until((folder.root / "failed").is_dir, "the folder")
        in_the_way = folder.root / "failed" / "set"
        in_the_way.write_text("a file where a folder has to be")
        folder.put("set/bad.png", b"no picture at all, and long enough")
        doors = folder.daemon.transports.doors
        await folder.until(lambda: "cannot write" in doors["hotfolder"].text, "the trouble")
        await folder.until(lambda: "cannot write" in folder.status(), "STATUS")
        folder.put("good.png", encoded(1))
        await folder.out("good.png")
        in_the_way.unlink()
        await folder.until(lambda: "set/bad.png" in folder.names("failed"), "the failure")
        await folder.until(lambda: "cannot write" not in doors["hotfolder"].text, "its end")
        assert doors["hotfolder"].crashes == 0
