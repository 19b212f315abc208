"""The folders: staged pictures, and one folder a job that tells its whole story.

    spool/<job id>.unreadable/     a job that could not be restored; for a person to look at
    spool/staged/<sha256>          a picture that came in, kept for an hour or by a job
    spool/<job id>/input-1.png     inputs (second names of staged files), mask.png
                   request.json    written last: the request, resolved
                   result-1.png    results
                   result.json     written last: their hashes, sizes, seeds, timings
                   end.json        how the job ended, where it has no result

A folder is complete when its last file is there; all its functions block, so the
daemon calls them in threads. `write` is a seam: tests of disk faults put their own in.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import itertools
import json
import logging
import os
import shutil
import stat
import threading
import time
import uuid
from collections.abc import Callable, Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO

from vellumd import errors, images, platform
from vellumd.errors import disk_error
from vellumd.images import sha256_of
from vellumd.models import JOB_ID, ImageRef, ResolvedEdit, Result
from vellumd.settings import Limits
from vellumd.store import story
from vellumd.store.room import Usage, children, freed
from vellumd.store.story import ResultFile

log = logging.getLogger(__name__)

STAGED_S = 3600
"""Seconds a staged picture is kept without a job using it."""


ROOM = 256 << 20
"""Free bytes that count as room: four PNGs of 4096x4096 pixels, the most an edit makes."""
PROBE = 1 << 20
"""Bytes of the trial write."""
CHECKED = 1024
"""Files of which is remembered that they are whole; half a kilobyte each."""


class UnusableStoreError(errors.VellumError):
    """The store cannot be opened now. No wrong configuration: a later start may do it."""

    remedy = "Stop that program, mend the disk, or name another folder with store.dir."


class SharedSync:
    """fsync of one folder for many threads: those who ask while one runs share the next."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._asked = itertools.count(1)
        self._latest = 0
        self._synced = 0
        self._turn = threading.Lock()
        self._failure: OSError | None = None

    def __call__(self) -> None:
        """Return when all names made in the folder before this call are durable.

        Where an fsync fails, all who share it hear of it: the system tells the failure
        once, and forgets what it could not write.
        """
        mine = self._latest = next(self._asked)
        with self._turn:
            if self._synced < mine:
                covered = self._latest
                self._failure = None
                try:
                    platform.fsync_dir(self._folder)
                except OSError as error:
                    self._failure = error
                self._synced = covered
            if self._failure:
                raise self._failure


class Spool:
    """The folder of folders."""

    def __init__(
        self,
        root: Path,
        limits: Limits,
        write: Callable[[Path, bytes], None] = platform.write_durably,
    ) -> None:
        """Raises `UnusableStoreError` if the folder can be neither found nor made."""
        self.root = root
        self._staged = root / "staged"
        self._limits = limits
        self._write = write
        try:
            self._staged.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UnusableStoreError(
                f"The folder {root.name} in store.dir cannot be made ({error.strerror})."
            ) from None
        self.usage = Usage()
        self._staging = threading.Lock()
        self._sync_root = SharedSync(root)

    def folder(self, job_id: str) -> Path:
        """The folder of a job; ids come from the database, never from a path."""
        return self.root / job_id

    # what comes in

    def open_incoming(self) -> tuple[Path, BinaryIO]:
        """A new file to stream an upload into."""
        path = self._part()
        return path, path.open("xb")

    def _part(self) -> Path:
        """A name for a file that is not whole yet; what is left of it is swept at start."""
        return self._staged / f".{uuid.uuid4().hex}.part"

    def admit(self, incoming: Path, name: str) -> ImageRef:
        """Check a streamed upload and give it its place by content.

        Consumes the file: on an error it is gone. Raises the errors of
        `images.inspect`.
        """
        try:
            header = images.inspect(incoming, self._limits)
            with incoming.open("rb+") as file:
                sha256 = hashlib.file_digest(file, "sha256").hexdigest()
                os.fsync(file.fileno())
                size = file.tell()
            self._keep(incoming, sha256)
        except BaseException:
            incoming.unlink(missing_ok=True)
            raise
        return _ref(header, sha256, size, name)

    def admit_bytes(self, picture: bytes, name: str) -> ImageRef:
        """As `admit`, of a picture in memory: nothing refused touches the disk."""
        header = images.inspect_file(io.BytesIO(picture), self._limits)
        sha256 = hashlib.sha256(picture).hexdigest()
        if not self._is_kept(sha256):
            incoming = self._part()
            try:
                self._write(incoming, picture)
                self._keep(incoming, sha256)
            except BaseException:
                incoming.unlink(missing_ok=True)
                raise
        return _ref(header, sha256, len(picture), name)

    def _is_kept(self, sha256: str) -> bool:
        """Whether this content is staged already; if so its hour begins anew.

        A file that is not what its name says is removed: it would spoil all that reuse it.
        """
        staged = self._staged / sha256
        try:
            with self._staging:
                os.utime(staged)
            if _is_whole(staged, sha256):  # not under the lock: others need not wait for it
                return True
            log.error("the staged picture %s was damaged on the disk; removed", sha256)
            with self._staging:
                if not _is_whole(staged, sha256):
                    self._unlink(staged)
        except FileNotFoundError:
            pass
        return False

    def _keep(self, incoming: Path, sha256: str) -> None:
        """Give a written file its place. What is there stays: a job may be linking it.

        Linux fails a link to a name that is replaced at that moment (ENOENT).
        """
        if self._is_kept(sha256):
            incoming.unlink()
            return
        with self._staging:
            if (self._staged / sha256).exists():  # since a moment ago
                incoming.unlink()
            else:
                os.replace(incoming, self._staged / sha256)
                self.usage.add(freed(self._staged / sha256))

    def staged(self, sha256: str, name: str = "") -> ImageRef:
        """The staged picture with this hash; its hour begins anew. Raises `NotFound`."""
        path = self._staged / sha256
        if not self._is_kept(sha256):
            raise errors.NotFound("No picture with this hash was sent within the hour.")
        header = images.inspect(path, self._limits)
        return _ref(header, sha256, path.stat().st_size, name)

    # a job

    def create(self, job_id: str, edit: ResolvedEdit, request: dict[str, Any]) -> None:
        """Make the job's folder durable: inputs first, `request.json` last.

        Raises `NotFound` if a staged picture is gone, `StorageFull` without room. A
        half-made folder is removed.
        """
        folder = self.folder(job_id)
        try:
            folder.mkdir()
        except OSError as error:  # one that is there is not ours to remove
            raise disk_error(error) from error
        try:
            for name, picture in edit.files():
                self._claim_staged(picture, folder / name)
            self._write(folder / story.REQUEST, json.dumps(request).encode())
            platform.fsync_dir(folder)
            self._sync_root()
        except BaseException as error:
            self.remove(job_id)
            if isinstance(error, OSError):
                raise disk_error(error) from error
            raise

    def _claim_staged(self, picture: ImageRef, target: Path) -> None:
        try:
            platform.link_or_copy(self._staged / picture.sha256, target)
        except FileNotFoundError:
            raise errors.NotFound("A picture of this request is no longer here.") from None

    def restage(self, job_id: str, edit: ResolvedEdit) -> None:
        """Put a job's inputs back among the staged pictures, for a retry."""
        for name, picture in edit.files():
            if self._is_kept(picture.sha256):
                continue
            incoming = self._part()
            try:
                platform.link_or_copy(self.folder(job_id) / name, incoming)
                os.utime(incoming)  # a second name has the age of the first
                if not _is_whole(incoming, picture.sha256):
                    incoming.unlink()
                    raise errors.Expired("A picture of the job was damaged on the disk.")
                self._keep(incoming, picture.sha256)
            except FileNotFoundError:
                raise errors.Expired("The job's pictures are no longer kept.") from None
            except OSError as error:
                incoming.unlink(missing_ok=True)
                raise disk_error(error) from error

    def result(self, job_id: str, result: Result) -> Path:
        """The file of a result; raises `Expired` when it is gone or damaged."""
        return _whole(self.folder(job_id) / result.file, result.sha256)

    def input(self, job_id: str, edit: ResolvedEdit, n: int) -> Path:
        """The file of input `n` (from 1); raises `NotFound`, or `Expired` as `result` does."""
        if not 1 <= n <= len(edit.images):
            raise errors.NotFound(f"The last picture of the job is {len(edit.images)}.")
        name, picture = edit.files()[n - 1]
        return _whole(self.folder(job_id) / name, picture.sha256)

    def mask(self, job_id: str, edit: ResolvedEdit) -> Path:
        """The file of the mask; raises `NotFound` where there is none, or `Expired`."""
        if edit.mask is None:
            raise errors.NotFound("The job has no mask.")
        name, picture = edit.files()[-1]
        return _whole(self.folder(job_id) / name, picture.sha256)

    def has_room(self) -> bool:
        """Whether results can be written: tried out too, for quotas and read-only disks."""
        probe = self._part()
        try:
            if shutil.disk_usage(self.root).free < ROOM:
                return False
            self._write(probe, bytes(PROBE))
        except OSError:
            return False
        finally:
            with contextlib.suppress(OSError):
                probe.unlink(missing_ok=True)
        return True

    def adopt(self, job_id: str) -> ResultFile | None:
        """What a finished edit left, if `result.json` and every hash in it are right."""
        folder = self.folder(job_id)
        found = story.result(folder)
        try:
            whole = found and all(_is_whole(folder / r.file, r.sha256) for r in found.results)
        except OSError:
            return None
        return found if whole else None

    def job_ids(self) -> list[str]:
        """The names of all folders that can be jobs', oldest first: ids sort by age.

        What has another name is not ours, such as a file system's lost+found.
        """
        return sorted(filter(JOB_ID.fullmatch, os.listdir(self.root)))

    def set_aside(self, job_id: str) -> str:
        """Keep a folder that no job can be made of, under a name that is no job's.

        One that is there, since a backup brought the job back, stays as well.
        """
        target = self.folder(f"{job_id}.unreadable")
        for number in itertools.count(2):
            if not target.exists():
                break
            target = target.with_suffix(f".unreadable-{number}")
        os.replace(self.folder(job_id), target)
        return target.name

    def remove(self, job_id: str) -> None:
        """Forget a job's pictures."""
        folder = self.folder(job_id)
        self.usage.add(-sum(freed(Path(file)) for file in children(folder)))
        shutil.rmtree(folder, ignore_errors=True)

    def remove_inputs(self, job_id: str, edit: ResolvedEdit) -> bool:
        """Forget what came in for a job that has ended, to make room; its results stay.

        False, and nothing is forgotten, while one of its pictures is staged: others may
        still name it, and no room would come of it, since it has two names.
        """
        if any((self._staged / picture.sha256).exists() for _, picture in edit.files()):
            return False
        for name, _ in edit.files():
            self._unlink(self.folder(job_id) / name)
        return True

    def _unlink(self, path: Path) -> None:
        """Remove a file; one that Windows holds because it is being read goes another time."""
        size = freed(path)
        with contextlib.suppress(FileNotFoundError, PermissionError):
            path.unlink()
            self.usage.add(-size)

    def sweep(self, known: Iterable[str], idle_s: float = 0) -> int:
        """Remove folders without a row and unfinished uploads; the number removed.

        Only what did not change for `idle_s` seconds: while the daemon takes in, the
        others belong to requests that are on their way.
        """
        newest = time.time() - idle_s
        strays = [self.folder(job_id) for job_id in {*self.job_ids()}.difference(known)]
        parts = [part for part in self._staged.glob(".*.part") if part.is_file()]
        for stray in (*strays, *parts):
            with contextlib.suppress(FileNotFoundError):
                if stray.stat().st_mtime <= newest:
                    self._unlink(stray) if stray in parts else self.remove(stray.name)
        return len(strays)

    def expire_staged(self) -> None:
        """Remove staged pictures whose hour is over; jobs keep their own names of them."""
        oldest = time.time() - STAGED_S
        for file in children(self._staged):
            with self._staging, contextlib.suppress(FileNotFoundError):
                if file.is_file() and os.stat(file).st_mtime < oldest:
                    self._unlink(Path(file))


def _ref(header: images.Header, sha256: str, size: int, name: str) -> ImageRef:
    return ImageRef(
        sha256=sha256,
        width=header.width,
        height=header.height,
        type=header.type,
        bytes=size,
        name=name,
    )


def _whole(path: Path, sha256: str) -> Path:
    """The file, if it is what was stored; raises `Expired`."""
    try:
        found = path.stat()
        if _matches(path, sha256, found.st_size, found.st_mtime_ns, found.st_ctime_ns):
            return path
    except (FileNotFoundError, NotADirectoryError):
        raise errors.Expired("The picture is no longer kept.") from None
    raise errors.Expired("The picture was damaged on the disk.")


@lru_cache(CHECKED)
def _matches(path: Path, sha256: str, *state: int) -> bool:
    """Whether the file has this hash: looked at once, until its `state` is another."""
    whole = _is_whole(path, sha256)
    if not whole:
        log.error("%s of job %s was damaged on the disk", path.name, path.parent.name)
    return whole


def _is_whole(path: Path, sha256: str) -> bool:
    """Whether it is a file with this hash; no where the disk cannot read what it holds.

    Raises `OSError` where it is not there, or cannot be looked at for now.
    """
    try:  # what is no file, such as a pipe, could keep its reader waiting for ever
        return stat.S_ISREG(path.stat().st_mode) and sha256_of(path) == sha256
    except OSError as error:
        if error.errno == errno.EIO:
            return False
        raise
