"""How long jobs are kept: in days, and as long as there is room.

An ended job loses its inputs first, where room is needed, then its folder and what its row
says of the request, and after 90 days the row. What was sent within the hour, and a job whose
delivery is not settled, stay whole. All is done in small pieces, so that nobody
waits for the store, and so that a kill between any two of them leaves nothing that the next
start does not put right.
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import suppress

from vellumd import errors
from vellumd.models import ResolvedEdit, now_ms
from vellumd.settings import StoreSettings
from vellumd.store import rows
from vellumd.store.database import Transaction, read_queries
from vellumd.store.room import Room
from vellumd.store.spool import Spool
from vellumd.store.store import Store

log = logging.getLogger(__name__)

SQL = read_queries("retention.sql")

HOUR_MS = 3_600_000
DAY_MS = 24 * HOUR_MS
ROW_DAYS = 90
"""Days from a job's end to that of its row: so long its id is answered with `expired`."""
GIVE_UP_S = 7 * 86_400.0
"""Seconds for which a delivery is tried whose transport is not there to say otherwise."""
PIECE = 20
"""Jobs that one transaction changes: about a millisecond of the store's thread (measured)."""
PASS_S, SPACING_S = 60.0, 2.0
"""Seconds from one look to the next, and at least, when room is wanted."""
TIDY_PASSES = 60
"""Looks after which the disk is measured and strays are swept: an hour."""


class Retention:
    """Lets go of what is old or too much. One a daemon.

    `give_up_s` says by transport how long after a job's end its delivery is tried. `now`
    is a seam for tests.
    """

    def __init__(
        self,
        store: Store,
        spool: Spool,
        room: Room,
        settings: StoreSettings,
        give_up_s: Mapping[str, float] | None = None,
        now: Callable[[], int] = now_ms,
    ) -> None:
        self._store = store
        self._spool = spool
        self._room = room
        self._days = settings.retention_days
        self._give_up_s = give_up_s or {}
        self._now = now

    async def run(self) -> None:
        """Look every minute, or as soon as room is wanted; for ever."""
        number = 0
        while True:
            self._room.wanted.clear()
            try:
                if number % TIDY_PASSES == 0:
                    await self.tidy()
                await self.once()
                number += 1
            except (errors.VellumError, OSError) as error:
                log.warning("old jobs stay for now: %s", error)
            await asyncio.sleep(SPACING_S)
            with suppress(TimeoutError):
                async with asyncio.timeout(PASS_S):
                    await self._room.wanted.wait()

    def delivered(self) -> None:
        """A delivery was settled: without retention its job goes now."""
        if not self._days:
            self._room.wanted.set()

    async def tidy(self) -> None:
        """Sweep what belongs to no job for an hour, and measure what is used."""
        known = await self._store.ids()
        await asyncio.to_thread(self._spool.sweep, known, HOUR_MS / 1000)
        await asyncio.to_thread(self._spool.usage.measure, self._spool.root)

    async def once(self) -> None:
        """Let go of all whose time is over, then of the oldest until there is room."""
        await asyncio.to_thread(self._spool.expire_staged)
        await self._give_up()
        for kept in ("all", "results"):
            async for piece in self._ended(kept, self._cutoff()):
                await self._expire([row for row in piece if self._is_over(row)])
        await self._make_room()
        await self._forget()

    async def _give_up(self) -> None:
        """Deliveries that were tried for long enough are undeliverable."""
        for source in await self._rows("owing", {}):
            seconds = self._give_up_s.get(source[0], GIVE_UP_S)
            fields = {"source": source[0], "before": self._now() - round(seconds * 1000)}
            while count := await self._change("give_up", fields):
                log.warning("%d result(s) could not be delivered in time (%s)", count, source[0])

    def _cutoff(self) -> int:
        """The latest end of a job whose time can be over."""
        return self._now() - round(self._days * DAY_MS)

    def _is_over(self, row: sqlite3.Row) -> bool:
        """Whether its time is over: without retention that is its delivery, or an hour."""
        return bool(self._days or row["delivered"] or row["ended"] <= self._now() - HOUR_MS)

    async def _ended(self, kept: str, before: int) -> AsyncIterator[list[sqlite3.Row]]:
        """Ended jobs that still have what `kept` says and owe nothing, oldest first, in pieces.

        The next piece is looked up when the one before was dealt with.
        """
        last = {"ended": -1, "number": 0}
        while True:
            fields = {**last, "kept": kept, "before": before, "piece": PIECE}
            found = await self._rows("ended", fields)
            if not found:
                return
            if piece := [row for row in found if not row["owed"]]:
                yield piece
            last = {"ended": found[-1]["ended"], "number": found[-1]["number"]}

    async def _make_room(self) -> None:
        """While too much is used: inputs of the oldest go, then the folders of the oldest.

        Those that kept their inputs, since these are staged, come last.
        """
        if self._room.over:
            await asyncio.to_thread(self._spool.usage.measure, self._spool.root)
        async for piece in self._ended("all", self._now()):
            if not self._room.over:
                break
            await self._lighten(piece)
        for kept in ("results", "all"):
            async for piece in self._ended(kept, self._now()):
                for row in piece:
                    if self._room.over:
                        await self._expire([row])
                if not self._room.over:
                    break
        self._room.exhausted = self._room.over

    async def _lighten(self, piece: list[sqlite3.Row]) -> None:
        """Remove inputs, then say so in the rows: a kill in between repeats the removal."""
        done = []
        for row in piece:
            if not self._room.over:
                break
            edit = ResolvedEdit.model_validate_json(row["resolved"])
            if await asyncio.to_thread(self._spool.remove_inputs, row["id"], edit):
                done.append([row["number"]])
        await self._store.run(lambda tx: [tx.execute(SQL["lighten"], row) for row in done])

    async def _expire(self, piece: list[sqlite3.Row]) -> None:
        """Empty rows, then remove their folders: a kill in between leaves strays to sweep.

        The other way round on a disk that is too full to say so.
        """

        def work(tx: Transaction) -> list[str]:
            gone = []
            for row in piece:
                if tx.one(SQL["expire"], [row["number"]]):
                    tx.execute(rows.SQL["forget_deliveries"], [row["id"]])
                    gone.append(row["id"])
            return gone

        if piece:
            try:
                gone = await self._store.run(work)
            except errors.StorageFull:
                await asyncio.to_thread(self._remove, [row["id"] for row in piece])
                gone = await self._store.run(work)
            await asyncio.to_thread(self._remove, gone)

    def _remove(self, job_ids: Iterable[str]) -> None:
        for job_id in job_ids:
            self._spool.remove(job_id)

    async def _forget(self) -> None:
        """Remove the rows of jobs that ended long ago."""
        fields = {"before": self._now() - ROW_DAYS * DAY_MS, "piece": PIECE}

        def work(tx: Transaction) -> int:
            old = tx.execute(SQL["old_rows"], fields).fetchall()
            for row in old:
                tx.execute(rows.SQL["forget_events"], [row["id"]])
                tx.execute(rows.SQL["forget"], [row["id"]])
            return len(old)

        while await self._store.run(work):
            pass

    async def _change(self, query: str, fields: dict[str, object]) -> int:
        """Run a statement that changes at most a piece; how many rows it did change."""
        return await self._store.run(
            lambda tx: tx.execute(SQL[query], {**fields, "piece": PIECE}).rowcount
        )

    async def _rows(self, query: str, fields: dict[str, object]) -> list[sqlite3.Row]:
        """What a query finds."""
        return await self._store.run(lambda tx: tx.execute(SQL[query], fields).fetchall())
