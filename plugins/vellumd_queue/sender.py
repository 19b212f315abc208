"""What a server is owed: results and refusals, sent until it has them."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from vellumd import errors
from vellumd_queue.backoff import Backoff
from vellumd_queue.client import Client, ServerDownError
from vellumd_queue.finish import finish
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
    """The debts to one server, one at a time; those that fail go behind the others."""

    def __init__(self, client: Client, state: State, log: logging.Logger) -> None:
        self._client = client
        self._state = state
        self._log = log
        self._debts: dict[str, Debt] = {}
        self._waiting: asyncio.Queue[Debt] = asyncio.Queue()

    def owe(self, debt: Debt) -> None:
        """Send it as soon as possible; the same debt is not owed twice at a time."""
        if debt.name not in self._debts:
            self._debts[debt.name] = debt
            self._waiting.put_nowait(debt)

    def owes(self, name: str) -> bool:
        """Whether the debt `name` is not paid yet."""
        return name in self._debts

    @property
    def ids(self) -> list[Id]:
        """The server's jobs whose answers it has not got."""
        return [debt.id for debt in self._debts.values()]

    async def run(self) -> None:
        """Send for ever."""
        backoff = Backoff(LEAST_S)
        while True:
            debt = await self._waiting.get()
            try:
                await finish(self._pay(debt))
            except ServerDownError as down:
                self._state.failed("results", down.text)
                pause = backoff.pause(down.retry_after)
            except (errors.StorageFull, errors.EngineUnavailable):
                pause = backoff.pause()  # the store could not write down that it was sent
            else:
                self._state.succeeded("results")
                backoff.succeeded()
                continue
            self._waiting.put_nowait(debt)
            await asyncio.sleep(pause)

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
        self._debts.pop(debt.name, None)
