"""Changes in an inbox as the system tells them: hints, which only wake the scan."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import warnings
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Literal

from watchdog.events import FileSystemEvent, FileSystemEventHandler
from watchdog.observers import Observer

# It calls it an error that its own thread ends.
logging.getLogger("watchdog.observers.inotify").setLevel(logging.CRITICAL)
# And warns that it watches a folder twice, where one was made in another faster than it watches.
warnings.filterwarnings("ignore", "Callback with id", RuntimeWarning)

NETWORK = {
    "9p", "afs", "afpfs", "ceph", "cifs", "davfs", "fuse.davfs2", "fuse.glusterfs",
    "fuse.rclone", "fuse.s3fs", "fuse.sshfs", "fuse.vmhgfs-fuse", "glusterfs", "lustre", "ncpfs",
    "nfs", "nfs4", "prl_fs", "smb3", "smbfs", "vboxsf", "virtiofs", "drvfs",
}  # fmt: skip
"""File systems on which others write unseen, as /proc/mounts names them."""
TELLING = ("created", "modified", "closed", "moved")
"""Events that can mean a new file; what we read and take away wakes nobody."""


def on_network(path: Path) -> bool:
    """Whether `path` lies on a share, as far as the system tells."""
    if sys.platform == "win32":
        return str(path.resolve()).startswith("\\\\")
    try:
        lines = Path("/proc/mounts").read_text("utf-8", "replace").splitlines()
    except OSError:
        return False
    mounts = [line.split()[1:3] for line in lines]
    real = path.resolve()
    above = [(len(point), kind) for point, kind in mounts if real.is_relative_to(_unescape(point))]
    return max(above, default=(0, ""))[1] in NETWORK


def _unescape(point: str) -> str:
    return point.replace("\\040", " ").replace("\\011", "\t").replace("\\134", "\\")


def polls(path: Path, wanted: Literal["auto", "native", "poll"]) -> bool:
    """Whether a folder is only looked at from time to time."""
    return wanted == "poll" or (wanted == "auto" and on_network(path))


class _Handler(FileSystemEventHandler):
    def __init__(self, wake: Callable[[], object]) -> None:
        self._wake = wake

    def on_any_event(self, event: FileSystemEvent) -> None:
        if event.event_type in TELLING:
            with suppress(RuntimeError):  # the loop has ended first
                self._wake()


class Watch:
    """A watch on an inbox, set up again where another folder has come under its name.

    That is what a disk does that was away. `wake` is called in the loop.
    """

    def __init__(self, inbox: Path, wake: Callable[[], None], log: logging.Logger) -> None:
        self._inbox = inbox
        loop = asyncio.get_running_loop()
        self._handler = _Handler(partial(loop.call_soon_threadsafe, wake))
        self._log = log
        self._observer: Observer | None = None  # type: ignore[valid-type]
        self._armed: tuple[int, int] | None = None

    def arm(self) -> None:
        """Watch the inbox that is there now; blocking. Raises OSError where there is none."""
        found = os.stat(self._inbox)
        if self._armed == (found.st_dev, found.st_ino):
            return
        self.disarm()
        observer = Observer()
        observer.daemon = True
        try:
            observer.schedule(self._handler, os.fspath(self._inbox), recursive=True)
            observer.start()
        except OSError as error:  # no watches left, or a file system without
            self._log.warning("changes are not told here (%s): the folder is polled", error)
        else:
            self._observer = observer
        self._armed = (found.st_dev, found.st_ino)

    def disarm(self) -> None:
        """Watch no more."""
        if self._observer is not None:
            self._observer.stop()  # its threads end by themselves, at their next wait's end
        self._observer, self._armed = None, None
