"""Rows made again from the jobs' folders, where a database lost them."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path
from typing import Any

from vellumd.models import EventType
from vellumd.store import rows, story
from vellumd.store.database import Transaction, read_queries
from vellumd.store.rows import NewJob
from vellumd.store.spool import Spool
from vellumd.store.story import RequestFile, ResultFile

SQL = read_queries("rebuild.sql")


def last_seq(connection: sqlite3.Connection) -> int:
    """The number of the newest event there ever was in this database."""
    return int(connection.execute(rows.SQL["last_seq"]).fetchone()[0])


def from_folders(connection: sqlite3.Connection, spool: Spool, after: int) -> int:
    """Give every whole folder its row, and every row the end its folder tells.

    Events are numbered on from `after`. In one transaction; the number of new rows.
    Deliveries of jobs that have ended are made once more: better twice than never.
    """
    tx = Transaction(connection)
    tx.execute("BEGIN IMMEDIATE")
    try:
        _number_on(tx, max(after, last_seq(connection)))
        known = {row["id"] for row in tx.execute(SQL["known"])}
        added = 0
        for name in spool.job_ids():
            found = None if name in known else story.request(spool.folder(name))
            if found and found.id == name:
                added += rows.insert(tx, new_job(found)) is not None
        for row in tx.execute(SQL["not_ended"]).fetchall():
            _end(tx, row, spool.folder(row["id"]))
        connection.commit()
    finally:
        if connection.in_transaction:
            connection.rollback()
    return added


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
    rows.emit(tx, row["id"], status, at=at, **data)
