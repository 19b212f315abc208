"""Whether a job that is pulled now would start soon; else it better waits on its server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import aclosing, asynccontextmanager
from typing import Any

from vellumd import TransportContext, errors

SOON_S = 3.0
"""Seconds that a running edit may still take: as long as the next job's pictures travel."""
LOOK_S = 0.5
"""Seconds between two looks while nothing is heard: engine and disk change without events."""
PATIENCE_S = 2.0
"""Seconds after which a slow pull lets other servers' pulls go beside it."""


class Gate:
    """Open while the executor could start a job soon; lets pulls through one by one."""

    def __init__(self, context: TransportContext) -> None:
        self._context = context
        self._changed = asyncio.Event()
        self._left_s: float | None = None
        self._turn = asyncio.Lock()

    async def run(self) -> None:
        """Follow what happens to jobs."""
        while True:
            try:
                async with aclosing(self._context.jobs.events()) as events:
                    async for event in events:
                        self._left_s = event.data.get("eta_s") if event.type == "step" else None
                        self._changed.set()
            except (errors.StorageFull, errors.EngineUnavailable):
                await asyncio.sleep(LOOK_S)

    def is_open(self) -> bool:
        """Whether to pull now."""
        return starts_soon(self._context.info(), self._left_s)

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[Turn]:
        """Wait until the gate is open and it is the caller's turn."""
        turn = Turn(self._turn)
        while True:
            await self._until_open()
            await turn.take()
            if self.is_open():
                break
            turn.give()
        try:
            yield turn
        finally:
            turn.give()

    async def _until_open(self) -> None:
        while not self.is_open():
            self._changed.clear()
            try:
                async with asyncio.timeout(LOOK_S):
                    await self._changed.wait()
            except TimeoutError:
                pass


class Turn:
    """One pull's turn; a pull that is slow gives it up early, so that a server that hangs
    does not keep the others from being asked.
    """

    def __init__(self, lock: asyncio.Lock) -> None:
        self._lock = lock
        self._has = False

    async def take(self) -> None:
        """Wait for the turn; it is given up in `PATIENCE_S` at the latest."""
        await self._lock.acquire()
        self._has = True
        self._slow = asyncio.get_running_loop().call_later(PATIENCE_S, self.give)

    def give(self) -> None:
        """Let the next one go."""
        if self._has:
            self._has = False
            self._slow.cancel()
            self._lock.release()


def starts_soon(info: Mapping[str, Any], left_s: float | None) -> bool:
    """Whether a job that comes now would be started soon.

    `info` is the daemon's; `left_s` are the seconds that the running edit still takes, where
    that is known. A job that is pulled earlier would wait here, where no other worker of
    its server can take it.
    """
    queue = info["queue"]
    able = info["engine"]["ready"] and info["store"]["open"] and not queue["held"]
    ends_soon = left_s is not None and left_s <= SOON_S
    return bool(able and not queue["queued"] and (not queue["running"] or ends_soon))
