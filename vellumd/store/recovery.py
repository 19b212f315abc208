"""Opening the database: checked, mended from the folders where needed, up to date."""

from __future__ import annotations

import logging
import os
import sqlite3
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from vellumd import errors
from vellumd.store import integrity, rebuild, schema, story
from vellumd.store.mark import Mark
from vellumd.store.spool import Spool

log = logging.getLogger(__name__)

SIDE_FILES = ("", "-wal", "-shm")
"""Endings of the files that make one SQLite database."""

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


class UnusableStoreError(errors.ConfigError):
    """The database cannot be opened."""


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
    rebuilt: Rebuilt | None = None


def open_file(path: Path, spool: Spool | None) -> Opened:
    """The database at `path`, made if missing; blocks.

    A damaged one is set aside under a name with the time. What the folders of `spool`
    know and the database does not is put into it. Raises `UnusableStoreError`,
    `NewerSchemaError`.
    """
    mark = Mark(path.with_name(f"{path.name}.mark"))
    try:
        return _open(path, spool, mark)
    except BaseException as error:
        mark.close()
        if isinstance(error, sqlite3.Error | OSError):
            log.exception("the job store cannot be opened")
            raise UnusableStoreError(
                f"The job store {path.name} cannot be opened: another program holds it, or its "
                "disk is full, failing or read-only. Stop that program, mend the disk, or name "
                "another folder with store.dir."
            ) from error
        raise


def _open(path: Path, spool: Spool | None, mark: Mark) -> Opened:
    missing = not path.exists()
    connection, reason, kept = _whole(path)
    try:
        schema.migrate(connection)
        if missing and spool and any(map(story.request, map(spool.folder, spool.job_ids()))):
            reason = "it was missing"
        if not reason and rebuild.last_seq(connection) < mark.read():
            reason = "it lacks its last commits"
            kept = schema.back_up(connection, _aside())
        if not reason:
            return Opened(connection, mark)
        jobs = rebuild.from_folders(connection, spool, mark.read()) if spool else 0
    except BaseException:
        connection.close()
        raise
    name = kept.name if kept else ""
    log.error("the job store was damaged (%s): kept as %s, %d job(s) restored from their folders",
              reason, name or "nothing", jobs)  # fmt: skip
    return Opened(connection, mark, Rebuilt(reason, name, jobs))


def _whole(path: Path) -> tuple[sqlite3.Connection, str, Path | None]:
    """A connection to a database that is whole; what was wrong, and where that is now."""
    connection: sqlite3.Connection | None = None
    try:
        connection = schema.connect(path)
        reason = integrity.damage(connection)
        if not reason:
            return connection, "", None
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
    kept = _set_aside(path)
    return schema.connect(path), reason, kept


def _close(connection: sqlite3.Connection | None) -> None:
    if connection:
        connection.close()


def _set_aside(path: Path) -> Path:
    """Rename the files of a database; the new name of its first."""
    target = path.with_name(f"{path.name}.{_aside()}")
    for ending in SIDE_FILES:
        file = path.with_name(path.name + ending)
        if file.exists():
            os.replace(file, target.with_name(target.name + ending))
    return target


def _aside() -> str:
    """The ending of a kept database: that it is damaged, and when this was found (UTC)."""
    return f"damaged-{datetime.now(UTC):%Y%m%dT%H%M%S.%fZ}"
