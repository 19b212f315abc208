"""Room for pictures: how much is used, and whether more may come in."""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import threading
from collections.abc import Callable
from functools import cache
from pathlib import Path

from vellumd import errors
from vellumd.settings import StoreSettings

log = logging.getLogger(__name__)

GB = 10**9
RETRY_S = 60.0
"""Seconds after which a refused sender may ask again; retention looks as often."""


class Usage:
    """Bytes that the files below a folder take.

    Counted along by who adds and removes, and measured now and then: what failed edits
    leave is not counted along.
    """

    def __init__(self) -> None:
        self.bytes = 0
        self._lock = threading.Lock()

    def add(self, size: int) -> None:
        """Note that `size` bytes came, or went where it is negative."""
        with self._lock:
            self.bytes += size

    def measure(self, root: Path) -> None:
        """Look at every file two levels down; of one with n names each counts an nth."""
        total = sum(share(file) for folder in children(root) for file in children(folder))
        with self._lock:
            self.bytes = round(total)


def children(folder: os.DirEntry[str] | Path) -> list[os.DirEntry[str]]:
    """What is in a folder; nothing if it is none, gone by now, or not ours to read."""
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except (FileNotFoundError, NotADirectoryError):
        return []
    except PermissionError:
        warn_unreadable(os.fspath(folder))
        return []


@cache
def warn_unreadable(folder: str) -> None:
    """Say it once: every look at the spool meets the folder again."""
    log.warning("%s cannot be read: what is in it is not counted", folder)


def share(file: os.DirEntry[str]) -> float:
    """A file's bytes divided by its names; 0 if it is gone by now."""
    try:
        found = os.stat(file)  # DirEntry.stat knows no number of links on Windows
    except OSError:
        return 0
    return found.st_size / max(1, found.st_nlink)


def freed(path: Path) -> int:
    """Bytes that removing this name frees: none while the file has another one."""
    try:
        found = path.stat()
    except OSError:
        return 0
    return found.st_size if found.st_nlink == 1 else 0


def disk_free(folder: Path) -> int:
    """Bytes that the disk with `folder` has left for us."""
    return shutil.disk_usage(folder).free


def writable(folder: Path) -> bool:
    """Whether files can be made there: no for a read-only disk or an immutable folder."""
    return os.access(folder, os.W_OK | os.X_OK)


class Room:
    """The gate of intake. `wanted` is set when retention shall make room.

    `exhausted` is what retention found out: more is used than allowed, and nothing of it
    can go. `free` and `writable` are seams for tests of disks.
    """

    def __init__(
        self,
        root: Path,
        usage: Usage,
        settings: StoreSettings,
        free: Callable[[Path], int] = disk_free,
        writable: Callable[[Path], bool] = writable,
    ) -> None:
        self._root = root
        self._usage = usage
        self._reserve = settings.reserve_gb * GB
        self.limit = settings.max_gb * GB
        self._free = free
        self._writable = writable
        self.wanted = asyncio.Event()
        self.exhausted = False

    @property
    def over(self) -> bool:
        """Whether more is used than allowed."""
        return self._usage.bytes > self.limit

    def check(self) -> None:
        """Raises `StorageFull` or `EngineUnavailable` while nothing more may come in."""
        if self.over:
            self.wanted.set()
        if error := self.lack():
            raise error

    def lack(self) -> errors.VellumError | None:
        """Why nothing more may come in; None if it may. Costs two system calls."""
        if not self._writable(self._root):
            return errors.EngineUnavailable(
                "The folder of the pictures cannot be written.", retry_after=RETRY_S
            )
        if self._left() < self._reserve:
            return errors.StorageFull(
                "The disk with the pictures has less left than store.reserve_gb.",
                retry_after=RETRY_S,
            )
        if self.over and self.exhausted:
            return errors.StorageFull(
                "Pictures of the last hour and of jobs that wait or were not delivered fill "
                "store.max_gb.",
                retry_after=RETRY_S,
            )
        return None

    def public(self) -> dict[str, object]:
        """How the gate is, as JSON values."""
        lack = self.lack()
        return {
            "open": lack is None,
            "writable": not isinstance(lack, errors.EngineUnavailable),
            "reason": lack.message if lack else "",
            "used_bytes": self._usage.bytes,
            "limit_bytes": round(self.limit),
            "free_bytes": self._left(),
            "reserve_bytes": round(self._reserve),
        }

    def _left(self) -> int:
        """Bytes that the disk has left; none if it does not say."""
        try:
            return self._free(self._root)
        except OSError:
            return 0
