"""Job rows, their events and deliveries: each change one guarded statement and one event.

A job's row decides; its folder (`spool.py`) holds the pictures. Methods return when
their change is on disk.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import JsonValue, TypeAdapter

from vellumd import errors
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
from vellumd.store.database import Database, Transaction, read_queries

SQL = read_queries("queries.sql")

ENGINE_DEATHS, DAEMON_DEATHS = 2, 5
"""Deaths during one job after which it fails: it may be what kills."""

_results = TypeAdapter(tuple[Result, ...])
_notices = TypeAdapter(tuple[Notice, ...])


@dataclass(frozen=True)
class NewJob:
    """What `Store.add` writes."""

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
    warnings: tuple[Notice, ...] = ()
    lane: int = 0


@dataclass(frozen=True)
class DeliveryRow:
    """A delivery that is due at `due` (milliseconds since the epoch)."""

    number: int
    job_id: str
    reply: JsonValue
    due: int


class Store:
    """The jobs. Made by `await Store.open(path, on_events)` in the daemon's loop.

    `tally` says how many jobs there are of each status, as of the last event.
    """

    def __init__(
        self,
        path: Path,
        on_events: Callable[[list[JobEvent]], None],
        commit: Callable[[sqlite3.Connection], None] = sqlite3.Connection.commit,
    ) -> None:
        self._db = Database(path, self._count, on_events, commit)
        self.tally: dict[str, int] = {}

    def _count(self, tx: Transaction) -> None:
        self.tally = dict(tx.execute(SQL["tally"]).fetchall())

    @classmethod
    async def open(
        cls,
        path: Path,
        on_events: Callable[[list[JobEvent]], None],
        commit: Callable[[sqlite3.Connection], None] = sqlite3.Connection.commit,
    ) -> Store:
        """The store at `path`. `commit` is the seam for tests of disk faults.

        Raises `NewerSchemaError`.
        """
        store = cls(path, on_events, commit)
        await store._db.run(store._count)
        return store

    async def close(self) -> None:
        """Finish what is under way and close the database."""
        await self._db.close()

    # changes

    async def add(
        self, new: NewJob, limit: int, prepare: Callable[[], None] | None = None
    ) -> tuple[Job, bool]:
        """Accept a job: its row, its event and its delivery row in one commit.

        `prepare` makes its folder durable before that, in a thread.
        The job and True; or the job already accepted under the same id or key and
        False. Raises `IdempotencyMismatch` if that one asked for something else,
        `QueueFull` if `limit` jobs wait.
        """

        def work(tx: Transaction) -> tuple[Job, bool]:
            row = tx.one(SQL["add"], _new_row(new))
            if row is None:
                return _same(tx, _found(_known(tx, new)), new), False
            if self.tally["queued"] + len(tx.committed) >= limit:
                raise errors.QueueFull(f"{limit} jobs wait already.", retry_after=30)
            if new.reply is not None:
                tx.execute(
                    SQL["add_delivery"], [new.id, new.source, json.dumps(new.reply), "waiting"]
                )
            _emit(tx, new.id, "queued")
            return _job(row, _one(tx, "ahead", {**dict(row), "place": None})), True

        return await self._db.run(work, prepare)

    async def claim(self, lane: int) -> Job | None:
        """The next job of a lane, now running; None if none waits."""

        def work(tx: Transaction) -> Job | None:
            row = tx.one(SQL["claim"], {"lane": lane, "now": now_ms()})
            if row is None:
                return None
            _emit(tx, row["id"], "started", attempt=row["attempt"])
            return _job(row)

        return await self._db.run(work)

    async def done(
        self,
        job_id: str,
        results: tuple[Result, ...],
        elapsed_s: float,
        warnings: tuple[Notice, ...],
    ) -> Job:
        """The running job has results."""

        def work(tx: Transaction) -> Job:
            fields = {
                "id": job_id,
                "now": now_ms(),
                "results": _results.dump_json(results).decode(),
                "elapsed_s": elapsed_s,
                "warnings": _with_accepted(tx, job_id, warnings),
            }
            return _ended(tx, tx.one(SQL["done"], fields), elapsed_s=elapsed_s)

        return await self._db.run(work)

    async def failed(
        self, job_id: str, error: errors.VellumError, warnings: tuple[Notice, ...] = ()
    ) -> Job:
        """The running job ends without result."""

        def work(tx: Transaction) -> Job:
            return _fail(tx, job_id, error, warnings)

        return await self._db.run(work)

    async def cancelled(self, job_id: str, *, running: bool) -> Job | None:
        """End a queued job, or a running one when `running`; None if it is in neither."""

        def work(tx: Transaction) -> Job | None:
            row = tx.one(SQL["cancelled"], {"id": job_id, "now": now_ms(), "running": running})
            return None if row is None else _ended(tx, row)

        return await self._db.run(work)

    async def request_cancel(self, job_id: str) -> bool:
        """Remember that a running job shall end, over a crash; False if it runs not."""
        return await self._db.run(lambda tx: tx.one(SQL["request_cancel"], [job_id]) is not None)

    async def requeue(
        self,
        job_id: str,
        *,
        engine_death: bool = False,
        daemon_death: bool = False,
        untried: bool = False,
    ) -> Job:
        """A running job whose run ended early goes to the head of the queue.

        An `untried` one is there without an attempt more. It ends instead if its
        cancellation was asked for, or if it saw `ENGINE_DEATHS` or `DAEMON_DEATHS`.
        """
        why = {"engine_deaths": engine_death, "daemon_deaths": daemon_death, "untried": untried}
        return await self._db.run(lambda tx: _requeue(tx, job_id, why))

    async def set_priority(self, job_id: str, priority: int) -> Job:
        """Move a queued job; raises `NotFound`, and `BadRequest` if it is not queued."""

        def work(tx: Transaction) -> Job:
            _get(tx, job_id)
            row = tx.one(SQL["set_priority"], {"id": job_id, "priority": priority})
            if row is None:
                raise errors.BadRequest("priority: only a queued job can be moved.")
            return _job(row)

        return await self._db.run(work)

    async def set_paused(self, lane: int, paused: bool) -> None:
        """Whether a lane starts no job, also after a restart."""
        await self._db.run(lambda tx: tx.execute(SQL["pause" if paused else "resume"], [lane]))

    async def forget(self, job_id: str) -> None:
        """Remove an ended job; raises `NotFound`, `NotDone` if it has not ended."""

        def work(tx: Transaction) -> None:
            row = _get(tx, job_id)
            if not JobStatus(row["status"]).terminal:
                raise errors.NotDone("The job has not ended; cancel it first.")
            if tx.execute(SQL["owed"], [job_id]).fetchone()[0]:
                raise errors.NotDone("The job's result has not been delivered yet.")
            tx.execute(SQL["forget_deliveries"], [job_id])
            tx.execute(SQL["forget_events"], [job_id])
            tx.execute(SQL["forget"], [job_id])

        await self._db.run(work)

    # questions

    async def get(self, job_id: str) -> Job:
        """The job, with its position while it waits; raises `NotFound`."""
        return await self._db.run(lambda tx: _placed(tx, _get(tx, job_id)))

    async def accepted(self, new: NewJob) -> Job | None:
        """The job that was accepted before under the id or key of `new`, if any.

        Raises `IdempotencyMismatch` if that one asked for something else.
        """

        def work(tx: Transaction) -> Job | None:
            row = _known(tx, new)
            return None if row is None else _same(tx, row, new)

        return await self._db.run(work)

    async def page(
        self, wanted: dict[str, str | None], before: int, limit: int
    ) -> list[tuple[int, Job]]:
        """Rows newest first below number `before`, each with its number."""
        query = SQL["list_status" if wanted.get("status") else "list"]

        def work(tx: Transaction) -> list[tuple[int, Job]]:
            rows = tx.execute(query, {**wanted, "before": before, "limit": limit}).fetchall()
            positions: dict[int, int] = {}
            for lane in {row["lane"] for row in rows if row["status"] == "queued"}:
                span = {"lane": lane, "first": rows[-1]["number"], "last": rows[0]["number"]}
                positions.update(tx.execute(SQL["positions"], span).fetchall())
            return [(row["number"], _job(row, positions.get(row["number"]))) for row in rows]

        return await self._db.run(work)

    async def running(self) -> list[Job]:
        """Jobs that were running: at start, those a dead daemon left."""
        return await self._db.run(lambda tx: [_job(row) for row in tx.execute(SQL["running"])])

    async def is_paused(self, lane: int) -> bool:
        """Whether somebody paused the lane."""
        row = await self._db.run(lambda tx: tx.one(SQL["is_paused"], [lane]))
        return bool(row and row[0])

    async def ids(self) -> list[str]:
        """Ids of all jobs that own a folder."""
        return await self._db.run(lambda tx: [row[0] for row in tx.execute(SQL["ids"])])

    async def events(self, job_id: str | None, since: int, limit: int = 100) -> list[JobEvent]:
        """Durable events after `since`, oldest first."""
        query = SQL["job_events" if job_id else "events"]
        fields = {"job_id": job_id, "since": since, "limit": limit}
        return await self._db.run(lambda tx: [_event(row) for row in tx.execute(query, fields)])

    async def last_seq(self) -> int:
        """The number of the newest durable event; 0 if there is none."""
        return await self._db.run(lambda tx: int(tx.execute(SQL["last_seq"]).fetchone()[0]))

    # deliveries

    async def pending_deliveries(self, source: str, limit: int = 100) -> list[DeliveryRow]:
        """Deliveries a transport owes, by the time they are due."""

        def work(tx: Transaction) -> list[DeliveryRow]:
            rows = tx.execute(SQL["pending_deliveries"], [source, limit])
            return [
                DeliveryRow(row["number"], row["job_id"], json.loads(row["reply"]), row["due"])
                for row in rows
            ]

        return await self._db.run(work)

    async def settle_delivery(self, number: int, state: str, code: str | None, due: int) -> None:
        """A delivery was made, put off until `due`, or given up for reason `code`."""
        fields = {"number": number, "state": state, "code": code, "due": due}
        await self._db.run(lambda tx: tx.execute(SQL["settle_delivery"], fields))


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
        "created": now_ms(),
        "warnings": _notices.dump_json(new.warnings).decode(),
    }


def _get(tx: Transaction, job_id: str) -> sqlite3.Row:
    return _found(tx.one(SQL["get"], [job_id]))


def _found(row: sqlite3.Row | None) -> sqlite3.Row:
    if row is None:
        raise errors.NotFound("There is no such job.")
    return row


def _known(tx: Transaction, new: NewJob) -> sqlite3.Row | None:
    """The row that has the new job's id or key already."""
    return tx.one(SQL["get"], [new.id]) or tx.one(SQL["by_key"], [new.source, new.key])


def _same(tx: Transaction, row: sqlite3.Row, new: NewJob) -> Job:
    if row["digest"] != new.digest:
        raise errors.IdempotencyMismatch("This key was used for a different request.")
    return _placed(tx, row)


def _placed(tx: Transaction, row: sqlite3.Row) -> Job:
    """The job, with its position while it waits."""
    if row["status"] != "queued":
        return _job(row)
    place = _one(tx, "place", dict(row))
    return _job(row, _one(tx, "ahead", {**dict(row), "place": place}))


def _one(tx: Transaction, query: str, fields: dict[str, Any]) -> int:
    """The one number that a query gives."""
    return int(tx.execute(SQL[query], fields).fetchall()[0][0])


def _emit(tx: Transaction, job_id: str, type: EventType, **data: Any) -> None:
    at = now_ms()
    seq = tx.execute(SQL["add_event"], [job_id, type, at, json.dumps(data)]).lastrowid
    event = JobEvent(job_id=job_id, type=type, at=moment(at), seq=seq, data=data)
    tx.committed.append(event)


def _ended(tx: Transaction, row: sqlite3.Row | None, **data: Any) -> Job:
    if row is None:
        raise errors.Internal("The job was not running.")
    tx.execute(SQL["release_deliveries"], [row["id"]])
    _emit(tx, row["id"], row["status"], **data)
    return _job(row)


def _fail(
    tx: Transaction, job_id: str, error: errors.VellumError, warnings: tuple[Notice, ...] = ()
) -> Job:
    fields = {
        "id": job_id,
        "now": now_ms(),
        "error": json.dumps(error.public()),
        "warnings": _with_accepted(tx, job_id, warnings),
    }
    return _ended(tx, tx.one(SQL["failed"], fields), error=error.public())


def _with_accepted(tx: Transaction, job_id: str, warnings: tuple[Notice, ...]) -> str:
    """The job's warnings of its acceptance and these, as JSON."""
    accepted = _notices.validate_json(_get(tx, job_id)["warnings"])
    return _notices.dump_json(tuple(dict.fromkeys((*accepted, *warnings)))).decode()


def _requeue(tx: Transaction, job_id: str, why: dict[str, bool]) -> Job:
    before = _get(tx, job_id)
    if before["cancel_requested"]:
        row = tx.one(SQL["cancelled"], {"id": job_id, "now": now_ms(), "running": True})
        return _ended(tx, row)
    if before["engine_deaths"] + why["engine_deaths"] >= ENGINE_DEATHS:
        return _fail(tx, job_id, errors.EngineCrashed("The engine died twice during this job."))
    if before["daemon_deaths"] + why["daemon_deaths"] >= DAEMON_DEATHS:
        return _fail(tx, job_id, errors.Internal("The daemon died five times during this job."))
    row = tx.one(SQL["requeue"], {"id": job_id, **why})
    if row is None:
        raise errors.Internal("The job was not running.")
    _emit(tx, job_id, "queued", attempt=row["attempt"])
    return _job(row)


def _time(milliseconds: int | None) -> Any:
    return None if milliseconds is None else moment(milliseconds)


def _job(row: sqlite3.Row, position: int | None = None) -> Job:
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
        results=_results.validate_json(row["results"]),
        elapsed_s=row["elapsed_s"],
        warnings=_notices.validate_json(row["warnings"]),
        error=ErrorInfo.model_validate_json(row["error"]) if row["error"] else None,
        meta=json.loads(row["meta"]),
    )


def _event(row: sqlite3.Row) -> JobEvent:
    return JobEvent(
        job_id=row["job_id"],
        type=row["type"],
        at=moment(row["at"]),
        seq=row["seq"],
        data=json.loads(row["data"]),
    )
