"""What a server is owed: results and refusals, sent until it has them."""

from __future__ import annotations

import asyncio
import logging
import sqlite3
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass

from vellumd import errors, sending
from vellumd_queue.backoff import Backoff, Pace
from vellumd_queue.client import Client, ServerDownError
from vellumd_queue.mapping import Id
from vellumd_queue.state import State

LEAST_S = 0.1
"""Shortest pause after a failure: a server may wish for less than polling would."""

Body = tuple[bytes, str]
"""Bytes and their content type."""
Settle = Callable[[str | None], Awaitable[None]]
"""Writes down how a debt ended: None, or the code it is given up with."""


@dataclass(frozen=True)
class Debt:
    """One answer that a server is owed until the Unix time `until`.

    `compose` makes the same bytes each time.
    """

    name: str
    id: Id
    until: float
    compose: Callable[[], Awaitable[Body]]
    settle: Settle


class Sender:
    """The debts to one server, one at a time.

    Those that failed wait behind new ones: what a server never takes, such as a result beyond
    its limit of bytes, must not hold up what it does take.
    """

    def __init__(self, client: Client, state: State, log: logging.Logger, pace: Pace) -> None:
        self._client = client
        self._state = state
        self._log = log
        self._pace = pace
        self._new: dict[str, Debt] = {}
        self._tried: dict[str, Debt] = {}
        self._in_flight: Debt | None = None
        self._owing = asyncio.Event()
        self._not_before = 0.0
        self._again_at = 0.0

    def owe(self, debt: Debt) -> None:
        """Send it as soon as possible; the same debt does not wait twice."""
        if debt.name not in self._new and debt.name not in self._tried:
            self._new[debt.name] = debt
            self._owing.set()

    @property
    def ids(self) -> list[Id]:
        """The server's jobs whose answers it has not got."""
        in_flight = [self._in_flight] if self._in_flight else []
        return [debt.id for debt in (*in_flight, *self._new.values(), *self._tried.values())]

    async def run(self) -> None:
        """Send for ever."""
        backoff = Backoff(self._pace, min(LEAST_S, self._pace.idle_s))
        while True:
            debt = self._in_flight = await self._next()
            try:
                await sending.finish(self._pay(debt))
            except (ServerDownError, errors.VellumError, OSError, sqlite3.Error) as error:
                self._failed(debt, error, backoff)
            else:
                self._state.succeeded("results")
                backoff.succeeded()
            self._in_flight = None

    async def _next(self) -> Debt:
        """The next debt, taken out of those that wait; waits for one and for its time."""
        clock = asyncio.get_running_loop().time
        while True:
            waiting, due = (
                (self._new, self._not_before) if self._new else (self._tried, self._again_at)
            )
            if waiting and due <= clock():
                return waiting.pop(next(iter(waiting)))
            self._owing.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(due - clock() if waiting else None):
                    await self._owing.wait()

    def _failed(self, debt: Debt, error: Exception, backoff: Backoff) -> None:
        """Have it wait behind the others; a server that says how long keeps all waiting."""
        wish = None
        if isinstance(error, ServerDownError):
            wish = error.retry_after
            self._state.failed("results", error.text)
        else:  # a disk or a store that takes or gives nothing just now
            self._log.warning("the answer to %.80r waits: %s", debt.id, error)
        self._tried[debt.name] = debt
        self._again_at = asyncio.get_running_loop().time() + backoff.pause(wish)
        self._not_before = self._again_at if wish is not None else 0.0

    async def _pay(self, debt: Debt) -> None:
        if time.time() > debt.until:
            await self._end(debt, "timeout")
            return
        body, type = await debt.compose()
        ended = await self._client.send(debt.id, body, type)
        await self._end(debt, None if ended == "delivered" else ended)

    async def _end(self, debt: Debt, code: str | None) -> None:
        if code:
            self._log.warning("the answer to %.80r is given up: %s", debt.id, code)
        await debt.settle(code)
