"""Who listens to what happens, without anybody being able to slow the others down."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice

from vellumd.models import JobEvent

BACKLOG = 256
"""Durable events kept for one slow listener; beyond, it reads the store again."""


WOKEN = 16
"""Listeners that are woken in one turn of the loop: work of others comes between them."""

Keep = Callable[[JobEvent], bool]
"""Which live events are kept like durable ones until they are read: a few, or memory goes."""


class Listener:
    """One listener's share: durable events in order, of live ones the newest.

    `behind` is true at first and whenever durable events had to be dropped: the owner
    then calls `caught_up` and reads the store, in this order.
    """

    def __init__(self, job_id: str | None, previews: bool, keep: Keep | None) -> None:
        self._job_id = job_id
        self._previews = previews
        self._keep = keep
        self._kept: deque[JobEvent] = deque()
        self._live: dict[tuple[str, str], JobEvent] = {}
        self._woken = asyncio.Event()
        self.behind = True

    def offer(self, event: JobEvent) -> bool:
        """Take an event, if it concerns this listener, who is then to be woken. Never blocks."""
        if self._job_id not in (None, event.job_id):
            return False
        if event.type == "preview" and not self._previews:
            return False
        if event.seq is None and self._keep and self._keep(event):
            self._kept.append(event)
        elif event.seq is None:
            self._live[event.job_id, event.type] = event
        elif not self.behind and len(self._kept) < BACKLOG:
            self._kept.append(event)
        else:  # what is kept must have no gap: all after the first one dropped is dropped
            self.behind = True
        return True

    def wake(self) -> None:
        """Let `next` look again."""
        self._woken.set()

    def look_again(self) -> None:
        """Have the owner read the store, though nothing happened."""
        self.behind = True
        self._woken.set()

    def caught_up(self) -> None:
        """Keep durable events again: the store is read next, which holds all before."""
        self.behind = False

    async def next(self) -> JobEvent | None:
        """The next event; None when the store has to be read first."""
        while True:
            if self._kept:
                return self._kept.popleft()
            if self.behind:
                return None
            if self._live:
                return self._live.pop(next(iter(self._live)))
            self._woken.clear()
            await self._woken.wait()


class EventBus:
    """Hands each event to all listeners. Lives in the daemon's loop."""

    def __init__(self) -> None:
        self._listeners: set[Listener] = set()
        self._asleep: dict[Listener, None] = {}
        self._previewing = 0
        self.observers: list[Callable[[JobEvent], None]] = []
        self.on_previews: Callable[[bool], None] = lambda wanted: None

    def publish(self, events: list[JobEvent]) -> None:
        """Offer events to all who listen, in order."""
        for event in events:
            for listener in tuple(self._listeners):
                if listener.offer(event):
                    self._asleep[listener] = None
            for observe in self.observers:
                observe(event)
        self._wake()

    def look_again(self) -> None:
        """Have all who listen read the store, though nothing happened."""
        for listener in self._listeners:
            listener.look_again()

    def _wake(self) -> None:
        """Wake some, and the others in the loop's next turn."""
        for listener in tuple(islice(self._asleep, WOKEN)):
            del self._asleep[listener]
            listener.wake()
        if self._asleep:
            asyncio.get_running_loop().call_soon(self._wake)

    @contextmanager
    def listen(
        self,
        job_id: str | None = None,
        previews: bool = False,
        keep: Keep | None = None,
    ) -> Iterator[Listener]:
        """Listen to one job, or all, while the block runs."""
        listener = Listener(job_id, previews, keep)
        self._listeners.add(listener)
        self._count_previews(int(previews))
        try:
            yield listener
        finally:
            self._listeners.discard(listener)
            self._asleep.pop(listener, None)
            self._count_previews(-int(previews))

    def _count_previews(self, change: int) -> None:
        before = bool(self._previewing)
        self._previewing += change
        if bool(self._previewing) != before:
            self.on_previews(bool(self._previewing))
