"""What was pulled and is not yet a job, and what was refused and is not yet told.

A server may give a job only once. So each is on our disk before anything else is done
with it, and no crash, full queue or daemon that stops can lose it.
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, TypeVar

T = TypeVar("T")

SCHEMA = """
CREATE TABLE IF NOT EXISTS pulled (
    number INTEGER PRIMARY KEY,
    server TEXT NOT NULL,
    at REAL NOT NULL,
    job BLOB,
    refusal BLOB,
    CHECK ((job IS NULL) <> (refusal IS NULL))
)
"""


@dataclass(frozen=True)
class Entry:
    """An answer of `server` as it came at `at` (Unix time), or the refusal it was given."""

    number: int
    server: str
    at: float
    job: bytes | None
    refusal: bytes | None


class Journal:
    """One SQLite file, committed to disk before each method returns.

    One that is damaged when it is opened is set aside, and a new one begun. A thread of its
    own does one thing after the other: what a cancelled caller leaves there ends before the
    connection is closed, or SQLite would take the process down.
    """

    def __init__(self, file: Path, log: logging.Logger) -> None:
        self._file = file
        self._log = log
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="queue journal")

    async def __aenter__(self) -> Self:
        try:
            self._connection = await self._run(_open, self._file)
        except sqlite3.OperationalError:
            raise  # locked, or out of room: that passes
        except sqlite3.DatabaseError as error:
            aside = await self._run(_set_aside, self._file)
            self._log.error("%s was damaged (%s) and is now %s", self._file.name, error, aside)
            self._connection = await self._run(_open, self._file)
        return self

    async def __aexit__(self, *_: object) -> None:
        closing = self._run(self._connection.close)
        self._thread.shutdown(wait=False)  # takes nothing more, and ends with what it has
        await closing

    async def keep(self, server: str, job: bytes) -> Entry:
        """Write down what was pulled just now."""
        row = (server, time.time(), job)
        rows = await self._do("INSERT INTO pulled (server, at, job) VALUES (?, ?, ?)", row)
        return Entry(rows, *row, None)

    async def refuse(self, entry: Entry, refusal: bytes) -> Entry:
        """It will never be a job: keep what its server is to be told instead."""
        await self._do(
            "UPDATE pulled SET job = NULL, refusal = ? WHERE number = ?", (refusal, entry.number)
        )
        return Entry(entry.number, entry.server, entry.at, None, refusal)

    async def settle(self, entry: Entry) -> None:
        """It is a job now, or its server knows the refusal."""
        await self._do("DELETE FROM pulled WHERE number = ?", (entry.number,))

    async def entries(self, server: str) -> list[Entry]:
        """What is left of this server, oldest first."""
        query = "SELECT * FROM pulled WHERE server = ? ORDER BY number"
        rows = await self._run(_fetch, self._connection, query, (server,))
        return [Entry(*row) for row in rows]

    async def _do(self, statement: str, values: tuple[Any, ...]) -> int:
        """Commit one statement; the number of an inserted row."""
        return await self._run(_commit, self._connection, statement, values)

    def _run(self, work: Callable[..., T], *args: object) -> asyncio.Future[T]:
        return asyncio.get_running_loop().run_in_executor(self._thread, work, *args)


def _open(file: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(file, isolation_level=None, check_same_thread=False)
    try:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute(SCHEMA)
        found = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
        if found != "ok":
            raise sqlite3.DatabaseError(found)
    except sqlite3.Error:
        connection.close()
        raise
    return connection


def _set_aside(file: Path) -> str:
    """Keep a damaged file under another name, with what SQLite has beside it."""
    aside = f"{file.name}.damaged-{time.time_ns()}"
    for end in ("", "-wal", "-shm"):
        part = file.with_name(file.name + end)
        if part.exists():
            part.rename(file.with_name(aside + end))
    return aside


def _commit(connection: sqlite3.Connection, statement: str, values: tuple[Any, ...]) -> int:
    return connection.execute(statement, values).lastrowid or 0


def _fetch(
    connection: sqlite3.Connection, query: str, values: tuple[Any, ...]
) -> Iterable[tuple[Any, ...]]:
    return connection.execute(query, values).fetchall()
