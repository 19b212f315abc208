"""Opening the database: checked, mended from the folders where needed, up to date."""

from __future__ import annotations

import logging
import os
import sqlite3
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from vellumd import errors, platform
from vellumd.store import integrity, rebuild, schema, story
from vellumd.store.mark import Mark
from vellumd.store.pauses import Pauses
from vellumd.store.spool import Spool, UnusableStoreError

log = logging.getLogger(__name__)

NEW = "new"
"""Ending of a database that is being made again."""

_UNAVAILABLE = frozenset(
    (
        sqlite3.SQLITE_PERM,
        sqlite3.SQLITE_BUSY,
        sqlite3.SQLITE_LOCKED,
        sqlite3.SQLITE_NOMEM,
        sqlite3.SQLITE_READONLY,
        sqlite3.SQLITE_IOERR,
        sqlite3.SQLITE_FULL,
        sqlite3.SQLITE_CANTOPEN,
        sqlite3.SQLITE_AUTH,
    )
)
"""SQLite's result codes that say nothing against the database itself. IOERR is among them: a
full disk has no room for the shared memory of a healthy one (sqlite.org/rescode.html)."""


@dataclass(frozen=True)
class Rebuilt:
    """What opening had to mend: why, the copy that was kept, the jobs that came back."""

    reason: str
    kept: str
    jobs: int


@dataclass(frozen=True)
class Opened:
    """A database that is whole and of the newest schema."""

    connection: sqlite3.Connection
    mark: Mark
    pauses: Pauses
    rebuilt: Rebuilt | None = None

    def close(self) -> None:
        """Let go of the files."""
        self.connection.close()
        self.mark.close()


def open_file(path: Path, spool: Spool | None) -> Opened:
    """The database at `path`, made if missing; blocks.

    A damaged one is set aside under a name with the time. What the folders of `spool`
    know and the database does not is put into it. Raises `UnusableStoreError`,
    `NewerSchemaError`.
    """
    mark: Mark | None = None
    try:
        mark = Mark(path.with_name(f"{path.name}.mark"))
        for left in _files(path.with_name(f"{path.name}.{NEW}")):
            left.unlink(missing_ok=True)
        return _open(path, spool, mark, Pauses(path.with_name(f"{path.name}.paused")))
    except BaseException as error:
        if mark:
            mark.close()
        if isinstance(error, sqlite3.Error | OSError):
            log.exception("the job store cannot be opened")
            raise UnusableStoreError(
                f"The job store {path.name} cannot be opened: another program holds it, or its "
                "disk is full, failing or read-only."
            ) from error
        raise


def _open(path: Path, spool: Spool | None, mark: Mark, pauses: Pauses) -> Opened:
    connection: sqlite3.Connection | None = None
    reason = "it was missing" if _is_missed(path, spool, mark) else ""
    try:
        if not reason:
            connection, reason = _whole(path)
        if connection:
            schema.migrate(connection)
            if rebuild.last_seq(connection) >= mark.read():
                return Opened(connection, mark, pauses)
            reason = "it lacks its last commits"
            schema.back_up(connection, NEW)
    except BaseException:
        _close(connection)
        raise
    _close(connection)
    rebuilt = _rebuild(path, reason, spool, mark.read(), pauses.read())
    return Opened(schema.connect(path), mark, pauses, rebuilt)


def _is_missed(path: Path, spool: Spool | None, mark: Mark) -> bool:
    """Whether there is no database although there was one."""
    folders = map(spool.folder, spool.job_ids()) if spool else ()
    return not path.exists() and bool(mark.read() or any(map(story.has_request, folders)))


def _whole(path: Path) -> tuple[sqlite3.Connection | None, str]:
    """A connection to a database that is whole, or what is wrong with it."""
    connection: sqlite3.Connection | None = None
    try:
        connection = schema.connect(path)
        reason = integrity.damage(connection)
        if not reason:
            return connection, ""
    except errors.ConfigError:
        _close(connection)
        raise
    except (sqlite3.Error, ValueError) as error:  # ValueError: text that is no UTF-8
        # The low byte is the code, the others tell more of it.
        if getattr(error, "sqlite_errorcode", 0) & 0xFF in _UNAVAILABLE:
            _close(connection)
            raise
        reason = str(error)
    _close(connection)
    return None, reason


def _rebuild(path: Path, reason: str, spool: Spool | None, seq: int, paused: set[int]) -> Rebuilt:
    """Put a new database in the place of the one at `path`, which is set aside.

    The new one begins with the copy that lies beside it, if there is one. Until it is
    whole the old one stays where it is: however often this fails, there is one of it.
    """
    new = path.with_name(f"{path.name}.{NEW}")
    connection = schema.connect(new)
    try:
        schema.migrate(connection)
        rebuild.pause(connection, paused)
        jobs = rebuild.from_folders(connection, spool, seq) if spool else 0
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")  # its log does not move with it
    finally:
        connection.close()
    kept = _set_aside(path)
    os.replace(new, path)
    platform.fsync_dir(path.parent)
    log.error("the job store was damaged (%s): kept as %s, %d job(s) restored from their folders",
              reason, kept or "nothing", jobs)  # fmt: skip
    return Rebuilt(reason, kept, jobs)


def _close(connection: sqlite3.Connection | None) -> None:
    if connection:
        connection.close()


def _set_aside(path: Path) -> str:
    """Rename the files of a database, to the time (UTC); the name of its first, if it is there."""
    target = path.with_name(f"{path.name}.damaged-{datetime.now(UTC):%Y%m%dT%H%M%S.%fZ}")
    for file in _files(path):
        if file.exists():
            os.replace(file, target.with_name(target.name + file.name.removeprefix(path.name)))
    return target.name if target.exists() else ""


def _files(path: Path) -> list[Path]:
    """All files that make the SQLite database at `path`."""
    return [path.with_name(path.name + ending) for ending in ("", "-wal", "-shm")]
