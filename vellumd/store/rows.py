"""Rows as the objects they stand for, and back."""

from __future__ import annotations

import json
import sqlite3
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from pydantic import JsonValue, TypeAdapter

from vellumd.models import (
    ErrorInfo,
    EventType,
    Job,
    JobEvent,
    JobStatus,
    Notice,
    ResolvedEdit,
    Result,
    moment,
    now_ms,
)
from vellumd.store.database import Transaction, read_queries

SQL = read_queries("queries.sql")

Owed = tuple[str, JsonValue]
"""A transport that is owed a delivery, and the reply that it gets with it."""

RESULTS = TypeAdapter(tuple[Result, ...])
NOTICES = TypeAdapter(tuple[Notice, ...])


@dataclass(frozen=True)
class NewJob:
    """What `Store.add` writes; `created` is in milliseconds since the epoch.

    `reply` is what its own source is owed the job with, `followers` are the others.
    """

    id: str
    edit: ResolvedEdit
    source: str
    digest: str
    key: str | None = None
    client_id: str | None = None
    batch: str | None = None
    retry_of: str | None = None
    meta: JsonValue = None
    reply: JsonValue = None
    followers: tuple[Owed, ...] = ()
    warnings: tuple[Notice, ...] = ()
    lane: int = 0
    created: int = field(default_factory=now_ms)


@dataclass(frozen=True)
class DeliveryRow:
    """A delivery that is due at `due` (milliseconds since the epoch), put off `attempts` times.

    `number` is the asking's own: one more for the same `address` has another.
    """

    number: int
    job_id: str
    reply: JsonValue
    due: int
    attempts: int

    @property
    def address(self) -> tuple[str, str]:
        """What goes where."""
        return self.job_id, json.dumps(self.reply)


def insert(tx: Transaction, new: NewJob) -> sqlite3.Row | None:
    """Write the row of a new job, its deliveries and its event; None if it is known already."""
    row = tx.one(SQL["add"], _new_row(new))
    if row is None:
        return None
    own: tuple[Owed, ...] = () if new.reply is None else ((new.source, new.reply),)
    for source, reply in (*own, *new.followers):
        tx.execute(SQL["add_delivery"], [new.id, source, json.dumps(reply), "waiting"])
    emit(tx, row, "queued", at=new.created)
    return row


def owe_again(tx: Transaction, row: sqlite3.Row, known: NewJob) -> None:
    """A known job was asked for once more: its answer goes to that address as well, or again.

    Also if it is being sent there just now: nobody can tell whether that reached the sender
    before it asked.
    """
    state = "pending" if JobStatus(row["status"]).terminal else "waiting"
    fields = {"job_id": row["id"], "source": known.source, "state": state}
    tx.execute(SQL["owe_again"], {**fields, "reply": json.dumps(known.reply)})


def _new_row(new: NewJob) -> dict[str, Any]:
    return {
        "id": new.id,
        "lane": new.lane,
        "priority": new.edit.priority,
        "source": new.source,
        "client_id": new.client_id,
        "batch": new.batch,
        "dedupe_key": new.key,
        "digest": new.digest,
        "resolved": new.edit.model_dump_json(),
        "meta": json.dumps(new.meta),
        "retry_of": new.retry_of,
        "created": new.created,
        "warnings": NOTICES.dump_json(new.warnings).decode(),
    }


def emit(
    tx: Transaction, row: sqlite3.Row, type: EventType, *, at: int | None = None, **data: Any
) -> None:
    """Write an event of a job's row that the commit makes public; its data tell the source.

    `at` is in milliseconds, now by default.
    """
    at = now_ms() if at is None else at
    data["source"] = row["source"]
    seq = tx.execute(SQL["add_event"], [row["id"], type, at, json.dumps(data)]).lastrowid
    tx.committed.append(JobEvent(job_id=row["id"], type=type, at=moment(at), seq=seq, data=data))


def _time(milliseconds: int | None) -> datetime | None:
    return None if milliseconds is None else moment(milliseconds)


def job(row: sqlite3.Row, position: int | None = None) -> Job:
    """The job of a row; what is expired has no request."""
    edit = ResolvedEdit.model_validate_json(row["resolved"]) if row["resolved"] else None
    return Job(
        id=row["id"],
        status=JobStatus(row["status"]),
        model=edit.model if edit else "",
        source=row["source"],
        client_id=row["client_id"],
        batch=row["batch"],
        created=moment(row["created"]),
        started=_time(row["started"]),
        ended=_time(row["ended"]),
        position=position,
        attempt=row["attempt"],
        retry_of=row["retry_of"],
        request=edit,
        results=RESULTS.validate_json(row["results"]),
        elapsed_s=row["elapsed_s"],
        warnings=NOTICES.validate_json(row["warnings"]),
        error=ErrorInfo.model_validate_json(row["error"]) if row["error"] else None,
        meta=json.loads(row["meta"]),
    )


def event(row: sqlite3.Row) -> JobEvent:
    """The event of a row."""
    return JobEvent(
        job_id=row["job_id"],
        type=row["type"],
        at=moment(row["at"]),
        seq=row["seq"],
        data=json.loads(row["data"]),
    )
