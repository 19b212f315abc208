"""The jobs of the server, and a line for everything that was done with them."""

from __future__ import annotations

import hashlib
import json
import sqlite3
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import resources
from pathlib import Path
from typing import Any, Literal

LEASE_S = 600.0
"""Seconds after which a job without an answer or a sign of life is given again."""

Verdict = Literal["accepted", "repeated", "unknown"]


class Ledger:
    """One SQLite file. A call that returns is on disk.

    `lease_s` is for how long a worker may keep a job to itself.
    """

    def __init__(self, file: Path, lease_s: float = LEASE_S) -> None:
        self._lease_s = lease_s
        self._db = sqlite3.connect(file, isolation_level=None)
        self._db.row_factory = sqlite3.Row
        self._db.execute("PRAGMA journal_mode = WAL")
        self._db.execute("PRAGMA synchronous = FULL")
        self._db.executescript(resources.files(__package__).joinpath("schema.sql").read_text())

    def close(self) -> None:
        """Let go of the file."""
        self._db.close()

    def add(self, job: dict[str, Any]) -> str:
        """Put a job into the queue; its id. The same id is the same job."""
        id = job["id"]
        row = (json.dumps(id), json.dumps(job), time.time())
        self._db.execute("INSERT OR IGNORE INTO jobs (id, body, created) VALUES (?, ?, ?)", row)
        return str(id)

    def lease(self, worker: str) -> dict[str, Any] | None:
        """The oldest job that nobody has, now leased to `worker`."""
        with self._transaction():
            row = self._one(
                "UPDATE jobs SET leased_until = ?, worker = ?, times_given = times_given + 1"
                " WHERE number = (SELECT number FROM jobs WHERE status = 'waiting'"
                " AND leased_until < ? ORDER BY number LIMIT 1) RETURNING *",
                (time.time() + self._lease_s, worker, time.time()),
            )
            return None if row is None else self._given(row)

    def again(self, number: int, changes: dict[str, Any]) -> dict[str, Any] | None:
        """A job that was given before, with changes, as from a server that mixes things up."""
        query = "SELECT * FROM jobs WHERE times_given > 0 ORDER BY number LIMIT 1 OFFSET ?"
        count = self._one("SELECT count(*) FROM jobs WHERE times_given > 0")[0]
        row = self._one(query, (number % count,)) if count else None
        return None if row is None else self._given(row, changes)

    def renew(self, id: object, worker: str) -> bool:
        """A sign of life: the lease begins anew. False if the job is not this worker's."""
        row = self._one(
            "UPDATE jobs SET leased_until = ? WHERE id = ? AND worker = ? AND status = 'waiting'"
            " RETURNING number",
            (time.time() + self._lease_s, json.dumps(id), worker),
        )
        return row is not None

    def take(self, id: object, ok: bool, result: bytes) -> Verdict:
        """Take a result; only a job's first one counts."""
        status, key = ("done" if ok else "failed"), json.dumps(id)
        with self._transaction():
            row = self._one(
                "UPDATE jobs SET status = ?, result = ? WHERE id = ? AND status = 'waiting'"
                " RETURNING number",
                (status, result, key),
            )
            known = self._one("SELECT 1 FROM jobs WHERE id = ?", (key,))
            verdict: Verdict = "accepted" if row else "repeated" if known else "unknown"
            self._note(key, verdict, hashlib.sha256(result).hexdigest())
        return verdict

    def counts(self) -> dict[str, int]:
        """How many jobs wait, are leased, done and failed."""
        row = self._one(
            "SELECT sum(status = 'waiting' AND leased_until < :now) AS waiting,"
            " sum(status = 'waiting' AND leased_until >= :now) AS leased,"
            " sum(status = 'done') AS done, sum(status = 'failed') AS failed FROM jobs",
            {"now": time.time()},
        )
        return {name: row[name] or 0 for name in row.keys()}  # noqa: SIM118 - a Row has no items

    def newest(self, count: int) -> list[dict[str, Any]]:
        """The newest jobs for people to look at."""
        query = "SELECT id, status, worker, times_given FROM jobs ORDER BY number DESC LIMIT ?"
        return [dict(row) for row in self._db.execute(query, (count,))]

    def result(self, id: str) -> bytes | None:
        """The result of a job as it was posted; `id` is as in an address: 7 may be a number."""
        row = self._one("SELECT result FROM jobs WHERE id IN (?, ?)", (json.dumps(id), id))
        return row["result"] if row else None

    def fault(self, kind: str) -> None:
        """An answer was broken on purpose."""
        self._db.execute(
            "INSERT INTO faults VALUES (?, 1) ON CONFLICT DO UPDATE SET times = times + 1", (kind,)
        )

    def faults(self) -> dict[str, int]:
        """How often each kind of fault happened."""
        return {row["kind"]: row["times"] for row in self._db.execute("SELECT * FROM faults")}

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        """All of the block or, if the process dies in it, nothing."""
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
        finally:
            self._db.execute("COMMIT" if sys.exception() is None else "ROLLBACK")

    def _given(self, row: sqlite3.Row, changes: dict[str, Any] | None = None) -> dict[str, Any]:
        job: dict[str, Any] = {**json.loads(row["body"]), **(changes or {})}
        self._note(row["id"], "given", hashlib.sha256(json.dumps(job).encode()).hexdigest())
        return job

    def _note(self, job: str, what: str, sha256: str) -> None:
        entry = (time.time(), job, what, sha256)
        self._db.execute("INSERT INTO ledger (at, job, what, sha256) VALUES (?, ?, ?, ?)", entry)

    def _one(self, query: str, values: Any = ()) -> Any:
        """The first row, the statement run to its end."""
        rows = self._db.execute(query, values).fetchall()
        return rows[0] if rows else None
