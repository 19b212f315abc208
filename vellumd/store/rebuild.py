"""Rows made again from the jobs' folders, where a database lost them."""

from __future__ import annotations

import json
import logging
import sqlite3
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from vellumd.models import EventType
from vellumd.store import rows, story
from vellumd.store.database import Transaction, read_queries
from vellumd.store.rows import NewJob
from vellumd.store.spool import Spool
from vellumd.store.story import RequestFile, ResultFile

log = logging.getLogger(__name__)

T = TypeVar("T")

SQL = read_queries("rebuild.sql")

BAD_VALUE = (
    sqlite3.IntegrityError, sqlite3.DataError, sqlite3.InterfaceError, sqlite3.ProgrammingError,
)  # fmt: skip
"""SQLite's errors that speak against a value, and not against the database or its disk."""


def last_seq(connection: sqlite3.Connection) -> int:
    """The number of the newest event there ever was in this database."""
    return int(connection.execute(rows.SQL["last_seq"]).fetchone()[0])


def pause(connection: sqlite3.Connection, lanes: Iterable[int]) -> None:
    """Let these lanes be paused, and no others."""
    connection.execute(SQL["resume_all"])
    connection.executemany(rows.SQL["pause"], [(lane,) for lane in lanes])


def from_folders(connection: sqlite3.Connection, spool: Spool, after: int) -> int:
    """Give every whole folder its row, and every row the end its folder tells.

    Events are numbered on from `after`. In one transaction; the number of new rows.
    Deliveries of jobs that have ended are made once more: better twice than never.
    A folder with a request that makes no row is set aside, and costs the others nothing.
    """
    tx = Transaction(connection)
    tx.execute("BEGIN IMMEDIATE")
    added = 0
    unreadable = []
    try:
        _number_on(tx, max(after, last_seq(connection)))
        known = {row["id"] for row in tx.execute(SQL["known"])}
        for name in spool.job_ids():
            if name not in known and story.has_request(spool.folder(name)):
                outcome = _apart(tx, name, partial(_add, tx, name, spool.folder(name)))
                added += outcome is True
                if outcome is None:
                    unreadable.append(name)
        for row in tx.execute(SQL["not_ended"]).fetchall():
            _apart(tx, row["id"], partial(_end, tx, row, spool.folder(row["id"])))
        connection.commit()
    finally:
        if connection.in_transaction:
            connection.rollback()
    for name in unreadable:
        log.warning("job %s could not be restored; its folder is kept as %s",
                    name, spool.set_aside(name))  # fmt: skip
    return added


def _apart(tx: Transaction, job_id: str, work: Callable[[], T]) -> T | None:
    """What `work` gives; None, with nothing changed, if what the folder says is none of ours."""
    tx.execute("SAVEPOINT job")
    try:
        return work()
    except Exception as error:
        if isinstance(error, sqlite3.Error) and not isinstance(error, BAD_VALUE):
            raise  # the disk's fault, not the folder's
        log.warning("the folder of job %s says what cannot be", job_id, exc_info=True)
        tx.execute("ROLLBACK TO job")
        return None
    finally:
        if tx.connection.in_transaction:
            tx.execute("RELEASE job")


def _add(tx: Transaction, name: str, folder: Path) -> bool:
    """Make the row of a job; False if its key is another one's, so it was never accepted."""
    found = story.request(folder)
    if not found or found.id != name:
        raise ValueError(story.REQUEST)
    row = rows.insert(tx, new_job(found))
    if row is not None:
        rows.job(row)  # what cannot be read back would stop every list
    return row is not None


def _number_on(tx: Transaction, seq: int) -> None:
    """Let the next event be the one after `seq`: no reader sees a number twice."""
    tx.execute(SQL["forget_seq"])
    tx.execute(SQL["set_seq"], [seq])


def new_job(found: RequestFile) -> NewJob:
    """The job that a `request.json` tells of."""
    return NewJob(
        id=found.id,
        edit=found.resolved,
        source=found.source,
        digest=found.digest,
        key=found.key,
        client_id=found.request.get("client_id"),
        batch=found.request.get("batch"),
        retry_of=found.retry_of,
        meta=found.request.get("meta"),
        reply=found.reply,
        followers=found.followers,
        warnings=found.warnings,
        lane=found.lane,
        created=found.created,
    )


def _end(tx: Transaction, row: sqlite3.Row, folder: Path) -> None:
    """End a job as its folder says it ended, if it does."""
    if ended := story.end(folder):
        _settle(tx, row, ended.type, round(ended.at.timestamp() * 1000), ended.data)
    elif (found := story.result(folder)) and _all_there(folder, found):
        both = (*rows.NOTICES.validate_json(row["warnings"]), *found.warnings)
        _settle(
            tx,
            row,
            "done",
            story.result_at(folder),
            {"elapsed_s": found.elapsed_s},
            results=rows.RESULTS.dump_json(found.results).decode(),
            warnings=rows.NOTICES.dump_json(tuple(dict.fromkeys(both))).decode(),
        )


def _all_there(folder: Path, found: ResultFile) -> bool:
    """Whether the results have their sizes; hashing gigabytes would hold up the start."""
    try:
        return all((folder / r.file).stat().st_size == r.bytes for r in found.results)
    except OSError:
        return False


def _settle(
    tx: Transaction,
    row: sqlite3.Row,
    status: EventType,
    at: int,
    data: dict[str, Any],
    **found: str,
) -> None:
    elapsed = data.get("elapsed_s")
    fields = {
        "id": row["id"],
        "status": status,
        "started": row["started"] or (at - round(elapsed * 1000) if elapsed else None),
        "ended": at,
        "elapsed_s": elapsed,
        "error": json.dumps(data["error"]) if "error" in data else None,
        "results": found.get("results", "[]"),
        "warnings": found.get("warnings", row["warnings"]),
    }
    tx.execute(SQL["end"], fields)
    tx.execute(rows.SQL["release_deliveries"], [row["id"]])
    rows.emit(tx, row, status, at=at, **data)
