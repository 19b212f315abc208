"""Job rows, their events and deliveries: each change one guarded statement and one event.

A job's row decides; its folder (`spool.py`) holds the pictures. Methods return when
their change is on disk.
"""

from __future__ import annotations

import asyncio
import json
import logging
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from vellumd import errors
from vellumd.models import Job, JobEvent, JobStatus, Notice, Result, now_ms
from vellumd.store import recovery, rows, story
from vellumd.store.database import Database, Transaction
from vellumd.store.recovery import Opened
from vellumd.store.rows import SQL, DeliveryRow, NewJob
from vellumd.store.spool import Spool

T = TypeVar("T")

ENGINE_DEATHS, DAEMON_DEATHS = 2, 5
"""Deaths during one job after which it fails: it may be what kills."""


class BrokenStoreError(errors.Internal):
    """The database cannot be used any more; the next start checks and mends it."""

    remedy = "Check the disk and start the daemon again: it mends what can be mended."


log = logging.getLogger(__name__)


class Store:
    """The jobs. Made by `await Store.open(path, on_events)` in the daemon's loop.

    `tally` says how many jobs there are of each status, as of the last event. `rebuilt`
    is what had to be mended when it was opened, None if nothing.
    """

    def __init__(
        self,
        opened: Opened,
        on_events: Callable[[list[JobEvent]], None],
        commit: Callable[[sqlite3.Connection], None],
        spool: Spool | None,
    ) -> None:
        self._db = Database(opened.connection, self._look_back, on_events, commit)
        self._mark = opened.mark
        self._pauses = opened.pauses
        self._spool = spool
        self.rebuilt = opened.rebuilt
        self.tally: dict[str, int] = {}

    def _count(self, tx: Transaction) -> None:
        self.tally = dict(tx.execute(SQL["tally"]).fetchall())

    def _note_paused(self, tx: Transaction) -> None:
        self._pauses.write({row["lane"] for row in tx.execute(SQL["paused"])})

    def _look_back(self, tx: Transaction) -> None:
        """Note outside the database what its loss must not undo, before anybody hears of it."""
        self._count(tx)
        try:
            self._mark.write(tx.committed[-1].seq)
        except OSError:  # a note: without it a log cut at its end is not noticed
            log.exception("the store's mark could not be written")
        for event in tx.committed:
            if self._spool and event.type in ("failed", "cancelled"):
                story.note_end(self._spool.folder(event.job_id), event)

    @classmethod
    async def open(
        cls,
        path: Path,
        on_events: Callable[[list[JobEvent]], None],
        commit: Callable[[sqlite3.Connection], None] = sqlite3.Connection.commit,
        spool: Spool | None = None,
    ) -> Store:
        """The store at `path`, up to date and whole.

        A damaged one is set aside and made again from the folders of `spool`. `commit`
        is the seam for tests of disk faults. Raises `NewerSchemaError`,
        `UnusableStoreError`.
        """
        opening = asyncio.get_running_loop().run_in_executor(None, recovery.open_file, path, spool)
        try:
            opened = await asyncio.shield(opening)
        except asyncio.CancelledError:  # the thread goes on, and the folder is not free before
            (await opening).close()
            raise
        store = cls(opened, on_events, commit, spool)
        try:
            await store.run(store._begin)
        except BaseException:
            await store.close()
            raise
        return store

    def _begin(self, tx: Transaction) -> None:
        self._count(tx)
        self._note_paused(tx)

    async def run(self, work: Callable[[Transaction], T]) -> T:
        """The outcome of `work` in one transaction, once it is on disk."""
        return await self._db.run(work)

    async def watch(self) -> None:
        """Raise `BrokenStoreError` when the database can no longer be trusted."""
        await self._db.broken.wait()
        raise BrokenStoreError("The disk failed the job store, or damaged it.")

    async def close(self) -> None:
        """Finish what is under way and close the database."""
        await self._db.close()
        self._mark.close()

    # changes

    async def add(
        self, new: NewJob, limit: int, prepare: Callable[[], None] | None = None
    ) -> tuple[Job, bool]:
        """Accept a job: its row, its event and its delivery rows in one commit.

        `prepare` makes its folder durable before that, in a thread.
        The job and True; or the job already accepted under the same id or key and
        False. Raises `IdempotencyMismatch` if that one asked for something else,
        `QueueFull` if `limit` jobs wait.
        """

        def work(tx: Transaction) -> tuple[Job, bool]:
            row = rows.insert(tx, new)
            if row is None:
                return _same(tx, _found(_known(tx, new)), new), False
            if self.tally["queued"] + len(tx.committed) > limit:
                raise errors.QueueFull(f"{limit} jobs wait already.", retry_after=30)
            return rows.job(row, _one(tx, "ahead", {**dict(row), "place": None})), True

        return await self._db.run(work, prepare)

    async def claim(self, lane: int) -> Job | None:
        """The next job of a lane, now running; None if none waits."""

        def work(tx: Transaction) -> Job | None:
            row = tx.one(SQL["claim"], {"lane": lane, "now": now_ms()})
            if row is None:
                return None
            rows.emit(tx, row, "started", attempt=row["attempt"])
            return rows.job(row)

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
                "results": rows.RESULTS.dump_json(results).decode(),
                "elapsed_s": elapsed_s,
                "warnings": _with_accepted(tx, job_id, warnings),
            }
            return _ended(tx, tx.one(SQL["done"], fields), warnings, elapsed_s=elapsed_s)

        return await self._db.run(work)

    async def failed(
        self, job_id: str, error: errors.VellumError, warnings: tuple[Notice, ...] = ()
    ) -> Job:
        """The running job ends without result."""

        def work(tx: Transaction) -> Job:
            return _fail(tx, job_id, error, warnings)

        return await self._db.run(work)

    async def cancelled(self, job_id: str) -> Job | None:
        """End a job as cancelled; None if it has ended already."""

        def work(tx: Transaction) -> Job | None:
            row = tx.one(SQL["cancelled"], {"id": job_id, "now": now_ms(), "running": True})
            return None if row is None else _ended(tx, row)

        return await self._db.run(work)

    async def cancel(self, job_id: str) -> bool:
        """End a queued job; of a running one remember that it shall end, over a crash.

        True if it runs. In one transaction, since a running job may be put back in between.
        """

        def work(tx: Transaction) -> bool:
            if row := tx.one(SQL["cancelled"], {"id": job_id, "now": now_ms(), "running": False}):
                _ended(tx, row)
                return False
            return tx.one(SQL["request_cancel"], [job_id]) is not None

        return await self._db.run(work)

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
            return rows.job(row)

        return await self._db.run(work)

    async def set_paused(self, lane: int, paused: bool) -> None:
        """Whether a lane starts no job, also after a restart."""

        def work(tx: Transaction) -> None:
            tx.execute(SQL["pause" if paused else "resume"], [lane])
            self._note_paused(tx)

        await self._db.run(work)

    async def forget(self, job_id: str) -> None:
        """Remove an ended job; raises `NotFound`, `NotDone` if it has not ended.

        Nobody's answer is lost by it: its sender's delivery is waited for. Who only follows
        hears no more of it.
        """

        def work(tx: Transaction) -> None:
            _check_forgettable(tx, job_id)
            tx.execute(SQL["forget_deliveries"], [job_id])
            tx.execute(SQL["forget_events"], [job_id])
            tx.execute(SQL["forget"], [job_id])

        await self._db.run(work)

    async def check_forgettable(self, job_id: str) -> None:
        """Raise what `forget` would of this job; change nothing."""
        await self._db.run(lambda tx: _check_forgettable(tx, job_id))

    # questions

    async def get(self, job_id: str) -> Job:
        """The job, with its position while it waits; raises `NotFound`."""
        return await self._db.run(lambda tx: _placed(tx, _get(tx, job_id)))

    async def find(self, source: str, key: str) -> Job:
        """The job that was accepted under `key`; raises `NotFound`."""
        return await self._db.run(
            lambda tx: _placed(tx, _found(tx.one(SQL["by_key"], [source, key])))
        )

    async def accepted(self, new: NewJob) -> Job | None:
        """The job that was accepted before under the id or key of `new`, if any.

        Who asks again is owed the answer again, and so is who asks from elsewhere.
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
            page = tx.execute(query, {**wanted, "before": before, "limit": limit}).fetchall()
            positions: dict[int, int] = {}
            for lane in {row["lane"] for row in page if row["status"] == "queued"}:
                span = {"lane": lane, "first": page[-1]["number"], "last": page[0]["number"]}
                positions.update(tx.execute(SQL["positions"], span).fetchall())
            return [(row["number"], rows.job(row, positions.get(row["number"]))) for row in page]

        return await self._db.run(work)

    async def running(self) -> list[Job]:
        """Jobs that were running: at start, those a dead daemon left."""
        return await self._db.run(lambda tx: [rows.job(row) for row in tx.execute(SQL["running"])])

    async def has_queued(self, lane: int) -> bool:
        """Whether a job of the lane waits."""
        row = await self._db.run(lambda tx: tx.one(SQL["has_queued"], [lane]))
        return bool(row and row[0])

    async def waiting(self) -> list[tuple[str, int]]:
        """Who waits, oldest first: id and time of acceptance in milliseconds since the epoch."""
        return await self._db.run(
            lambda tx: [(row[0], row[1]) for row in tx.execute(SQL["waiting"])]
        )

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
        return await self._db.run(lambda tx: [rows.event(row) for row in tx.execute(query, fields)])

    async def last_seq(self) -> int:
        """The number of the newest durable event; 0 if there is none."""
        return await self._db.run(lambda tx: int(tx.execute(SQL["last_seq"]).fetchone()[0]))

    # deliveries

    async def pending_deliveries(self, source: str, limit: int = 100) -> list[DeliveryRow]:
        """Deliveries a transport owes, by the time they are due."""

        def work(tx: Transaction) -> list[DeliveryRow]:
            return [
                DeliveryRow(
                    row["number"],
                    row["job_id"],
                    json.loads(row["reply"]),
                    row["due"],
                    row["attempts"],
                )
                for row in tx.execute(SQL["pending_deliveries"], [source, limit])
            ]

        return await self._db.run(work)

    async def settle_delivery(self, number: int, state: str, code: str | None, due: int) -> None:
        """A delivery was made, put off until `due`, or given up for reason `code`."""
        fields = {"number": number, "state": state, "code": code, "due": due}
        await self._db.run(lambda tx: tx.execute(SQL["settle_delivery"], fields))


def _get(tx: Transaction, job_id: str) -> sqlite3.Row:
    return _found(tx.one(SQL["get"], [job_id]))


def _found(row: sqlite3.Row | None) -> sqlite3.Row:
    if row is None:
        raise errors.NotFound("There is no such job.")
    return row


def _check_forgettable(tx: Transaction, job_id: str) -> None:
    if not JobStatus(_get(tx, job_id)["status"]).terminal:
        raise errors.NotDone("The job has not ended; cancel it first.")
    if _one(tx, "owed", [job_id]):
        raise errors.NotDone("The job's result has not been delivered yet.")


def _known(tx: Transaction, new: NewJob) -> sqlite3.Row | None:
    """The row that has the new job's id or key already."""
    return tx.one(SQL["get"], [new.id]) or tx.one(SQL["by_key"], [new.source, new.key])


def _same(tx: Transaction, row: sqlite3.Row, new: NewJob) -> Job:
    if row["digest"] != new.digest:
        raise errors.IdempotencyMismatch("This key was used for a different request.")
    if new.reply is not None:
        rows.owe_again(tx, row, new)
    return _placed(tx, row)


def _placed(tx: Transaction, row: sqlite3.Row) -> Job:
    """The job, with its position while it waits."""
    if row["status"] != "queued":
        return rows.job(row)
    place = _one(tx, "place", dict(row))
    return rows.job(row, _one(tx, "ahead", {**dict(row), "place": place}))


def _one(tx: Transaction, query: str, fields: dict[str, Any] | list[str]) -> int:
    """The one number that a query gives."""
    return int(tx.execute(SQL[query], fields).fetchall()[0][0])


def _ended(
    tx: Transaction, row: sqlite3.Row | None, warnings: tuple[Notice, ...] = (), **data: Any
) -> Job:
    """Emit that the job ended; `warnings` are those that its run has earned."""
    if warnings:
        data["warnings"] = [warning.code for warning in warnings]
    if row is None:
        raise errors.Internal("The job was not running.")
    tx.execute(SQL["release_deliveries"], [row["id"]])
    rows.emit(tx, row, row["status"], **data)
    return rows.job(row)


def _fail(
    tx: Transaction, job_id: str, error: errors.VellumError, warnings: tuple[Notice, ...] = ()
) -> Job:
    fields = {
        "id": job_id,
        "now": now_ms(),
        "error": json.dumps(error.public()),
        "warnings": _with_accepted(tx, job_id, warnings),
    }
    return _ended(tx, tx.one(SQL["failed"], fields), warnings, error=error.public())


def _with_accepted(tx: Transaction, job_id: str, warnings: tuple[Notice, ...]) -> str:
    """The job's warnings of its acceptance and these, as JSON."""
    accepted = rows.NOTICES.validate_json(_get(tx, job_id)["warnings"])
    return rows.NOTICES.dump_json(tuple(dict.fromkeys((*accepted, *warnings)))).decode()


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
    rows.emit(tx, row, "queued", attempt=row["attempt"])
    return rows.job(row)
