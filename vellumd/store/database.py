"""One SQLite connection on one thread, with group commit.

SQLite allows one writer at a time, so one thread does all work in order. What has
gathered while the last commit waited for the disk shares the next one: durable intake
scales with the disk's rate of fsyncs times the batch. A single connection also keeps
clear of the WAL-reset bug of SQLite before 3.51.3.
"""

from __future__ import annotations

import asyncio
import logging
import queue
import sqlite3
import threading
from collections.abc import Callable
from importlib import resources
from typing import Any, TypeVar

from vellumd import errors

log = logging.getLogger(__name__)

BATCH = 64
"""Most pieces of work in one transaction; bounds how long one waits for the others."""


class Transaction:
    """What a piece of work gets: the connection, and a place for what commits with it."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self.connection = connection
        self.committed: list[Any] = []

    def execute(self, sql: str, parameters: Any = ()) -> sqlite3.Cursor:
        """Run one statement."""
        return self.connection.execute(sql, parameters)

    def one(self, sql: str, parameters: Any = ()) -> sqlite3.Row | None:
        """The first row of one statement, run to its end."""
        rows = self.connection.execute(sql, parameters).fetchall()
        return rows[0] if rows else None


T = TypeVar("T")
Work = Callable[[Transaction], Any]


class Database:
    """The connection. `on_commit` gets, in the loop, what each commit made public.

    `after_commit` is called before, in the thread, where something was made public.
    `broken` is set when the file can no longer be trusted: an fsync that failed has
    forgotten what it could not write, so nothing is tried on this file again.
    """

    def __init__(
        self,
        connection: sqlite3.Connection,
        after_commit: Callable[[Transaction], None],
        on_commit: Callable[[list[Any]], None],
        commit: Callable[[sqlite3.Connection], None] = sqlite3.Connection.commit,
    ) -> None:
        """`commit` is a seam: tests of disk faults put their own in its place."""
        self._loop = asyncio.get_running_loop()
        self._after_commit = after_commit
        self._on_commit = on_commit
        self._commit = commit
        self._connection = connection
        self._lost = False
        self.broken = asyncio.Event()
        self._waiting: queue.SimpleQueue[tuple[Work, asyncio.Future[Any]] | None] = (
            queue.SimpleQueue()
        )
        self._thread = threading.Thread(target=self._serve, name="vellumd-store", daemon=True)
        self._thread.start()

    async def run(
        self, work: Callable[[Transaction], T], prepare: Callable[[], None] | None = None
    ) -> T:
        """The outcome of `work`, once it is on disk. Raises what `work` raises.

        `prepare` runs before it in a thread of the pool: what must be on disk first.
        Handing over from there spares the loop one awakening a job (measured).
        Raises `StorageFull` when the disk has no room, `EngineUnavailable` while
        another process keeps the database locked.
        """
        future: asyncio.Future[T] = self._loop.create_future()
        if prepare is None:
            self._waiting.put((work, future))
        else:
            self._loop.run_in_executor(None, self._prepare, prepare, work, future)
        # A caller that goes away must not lose what was accepted on its behalf.
        return await asyncio.shield(future)

    def _prepare(
        self, prepare: Callable[[], None], work: Work, future: asyncio.Future[Any]
    ) -> None:
        try:
            prepare()
        except Exception as error:  # noqa: BLE001 - the caller hears it
            self._loop.call_soon_threadsafe(fail, [future], coded(error))
        else:
            self._waiting.put((work, future))

    async def close(self) -> None:
        """Finish what waits, then close the file."""
        self._waiting.put(None)
        await asyncio.to_thread(self._thread.join)
        self._connection.close()

    def _serve(self) -> None:
        while batch := self._next_batch():
            # A refusal takes its whole transaction along, so then each runs in its own.
            # Savepoints would spare that rare case and cost every other one (measured).
            if not self._commit_together(batch):
                for single in batch:
                    self._commit_together([single])

    def _next_batch(self) -> list[tuple[Work, asyncio.Future[Any]]]:
        first = self._waiting.get()
        batch = []
        while first is not None:
            batch.append(first)
            if len(batch) == BATCH:
                return batch
            try:
                first = self._waiting.get_nowait()
            except queue.Empty:
                return batch
        if batch:
            self._waiting.put(None)  # the end was asked for; serve these first
        return batch

    def _commit_together(self, batch: list[tuple[Work, asyncio.Future[Any]]]) -> bool:
        """Run and answer a batch; False if one of several was refused and nothing happened.

        A store that is locked or full answers the whole batch at once.
        """
        transaction = Transaction(self._connection)
        futures = [future for _, future in batch]
        try:
            if self._lost:
                raise errors.EngineUnavailable("The job store is being opened anew.")
            self._connection.execute("BEGIN IMMEDIATE")
            values = run_all(transaction, batch)
            if values is not None:
                self._commit(self._connection)
        except Exception as error:
            values = []
            if not isinstance(error, errors.VellumError):
                log.exception("the store could not do its work")
            if is_loss(error):
                self._lost = True
                self._loop.call_soon_threadsafe(self.broken.set)
            self._loop.call_soon_threadsafe(fail, futures, coded(error))
        if self._connection.in_transaction:
            self._connection.rollback()
        if values:
            if transaction.committed:
                self._look_back(transaction)
            self._loop.call_soon_threadsafe(self._publish, transaction.committed, futures, values)
        return values is not None

    def _look_back(self, transaction: Transaction) -> None:
        """Call `after_commit`; what is committed stays so, and the thread goes on."""
        try:
            self._after_commit(transaction)
        except Exception:
            log.exception("the store could not look back at a commit")

    def _publish(
        self, committed: list[Any], futures: list[asyncio.Future[Any]], values: list[Any]
    ) -> None:
        self._on_commit(committed)
        for future, value in zip(futures, values, strict=True):
            if not future.cancelled():
                future.set_result(value)


def run_all(
    transaction: Transaction, batch: list[tuple[Work, asyncio.Future[Any]]]
) -> list[Any] | None:
    """What each piece of work gives; None if one of several raised. A single one raises."""
    try:
        return [work(transaction) for work, _ in batch]
    except Exception:
        if len(batch) == 1:
            raise
        return None


def fail(futures: list[asyncio.Future[Any]], error: Exception) -> None:
    """Answer pieces of work with an error."""
    for future in futures:
        if not future.cancelled():
            future.set_exception(error)


def is_loss(error: Exception) -> bool:
    """Whether the database cannot be trusted after `error`: damage, or a disk that fails."""
    return isinstance(error, sqlite3.DatabaseError) and any(
        words in str(error) for words in ("disk I/O error", "malformed", "not a database")
    )


def coded(error: Exception) -> Exception:
    """The error a user may see for one of SQLite's."""
    if isinstance(error, sqlite3.OperationalError):
        if "full" in str(error):
            return errors.StorageFull("The disk with the job store is full.")
        if "locked" in str(error) or "busy" in str(error):
            return errors.EngineUnavailable("The job store is locked by another program.")
    if isinstance(error, sqlite3.Error):
        return errors.Internal("The job store failed.")
    return error


def read_queries(name: str) -> dict[str, str]:
    """The statements of a .sql file in this package, by the `-- name:` above each."""
    text = (resources.files("vellumd.store") / name).read_text(encoding="utf-8")
    parts = text.split("-- name: ")[1:]
    return {part.split("\n", 1)[0].strip(): part.split("\n", 1)[1].strip() for part in parts}
