"""What transports owe: finished jobs offered until their senders and followers have them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Protocol

from pydantic import JsonValue

from vellumd import errors
from vellumd.events import EventBus
from vellumd.models import ENDS, Delivery, Job, JobEvent, now_ms
from vellumd.store.rows import DeliveryRow, NewJob, Owed
from vellumd.store.store import Store


class Wanted(Protocol):
    """Which jobs are followed; equal ones count as one."""

    def __hash__(self) -> int: ...

    def takes(self, new: NewJob) -> bool:
        """Whether this one is."""


PAGE = 100
"""Deliveries that are read at once beyond those that are out."""


class Deliveries:
    """The delivery rows of the store as streams, one a transport.

    `on_settled` is called when one was made, put off or given up.
    """

    def __init__(self, store: Store, bus: EventBus, get: Callable[[str], Awaitable[Job]]) -> None:
        self._store = store
        self._get = get
        self._waiting: set[asyncio.Event] = set()
        self._followers: dict[tuple[str, str, Wanted], None] = {}
        self.on_settled: Callable[[], None] = lambda: None
        bus.observers.append(self._observe)

    def follow(self, source: str, reply: JsonValue, wanted: Wanted) -> None:
        """Owe `source` each new job that is `wanted`, with `reply`."""
        self._followers[source, json.dumps(reply), wanted] = None

    def followers(self, new: NewJob) -> tuple[Owed, ...]:
        """Who besides its own source is owed a job that is being accepted."""
        owed = {(source, reply): None for source, reply, one in self._followers if one.takes(new)}
        return tuple((source, json.loads(reply)) for source, reply in owed)

    async def of(self, source: str) -> AsyncGenerator[Delivery, None]:
        """See `TransportContext.deliveries`: for each address one is out at a time."""
        out: set[tuple[str, str]] = set()
        woken = asyncio.Event()
        self._waiting.add(woken)
        try:
            while True:
                woken.clear()
                # What is out may never be settled, and must not stand before the others.
                rows = await self._store.pending_deliveries(source, PAGE + len(out))
                waiting = [row for row in rows if row.address not in out]
                due = [row for row in waiting if row.due <= now_ms()]
                for row in due:
                    out.add(row.address)
                    if delivery := await self._offer(row, out):
                        yield delivery
                if not due:
                    await set_within(woken, waiting)
        finally:
            self._waiting.discard(woken)

    async def _offer(self, row: DeliveryRow, out: set[tuple[str, str]]) -> Delivery | None:
        """The delivery; None if retention gave it up since the row was read."""

        async def settle(state: str, code: str | None, after: float) -> None:
            due = now_ms() + round(after * 1000)
            try:
                await self._store.settle_delivery(row.number, state, code, due)
            finally:
                out.discard(row.address)
                self.wake()
            self.on_settled()

        try:
            return Delivery(await self._get(row.job_id), row.reply, settle, row.attempts)
        except (errors.NotFound, errors.Expired):
            return None

    def _observe(self, event: JobEvent) -> None:
        if event.type in ENDS:
            self.wake()

    def wake(self) -> None:
        """Look whether more is owed."""
        for woken in self._waiting:
            woken.set()


async def set_within(woken: asyncio.Event, waiting: list[DeliveryRow]) -> None:
    """Wait for `woken`, or until the first of `waiting` is due."""
    due = min((row.due for row in waiting), default=None)
    seconds = None if due is None else max(0.0, (due - now_ms()) / 1000)
    try:
        async with asyncio.timeout(seconds):
            await woken.wait()
    except TimeoutError:
        pass
