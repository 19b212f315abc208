"""The door: for each server one that pulls, one that sends and one that beats."""

from __future__ import annotations

import asyncio
from contextlib import aclosing

import aiohttp

from vellumd import TransportContext
from vellumd_queue import answers
from vellumd_queue.backoff import Pace
from vellumd_queue.client import Bounds, Client, open_session
from vellumd_queue.gate import Gate
from vellumd_queue.heart import beat
from vellumd_queue.journal import Journal
from vellumd_queue.link import Link
from vellumd_queue.plugin import QueueSettings, ServerSettings
from vellumd_queue.poller import poll
from vellumd_queue.sender import Sender
from vellumd_queue.state import State

UNKNOWN_S = 3600.0
"""Seconds until a result is looked at again whose server is not configured any more."""


class QueueTransport:
    """Pulls jobs from queue servers and posts their results."""

    def __init__(
        self,
        context: TransportContext,
        bounds: Bounds | None = None,
        pace: Pace | None = None,
    ) -> None:
        self._context = context
        self._settings: QueueSettings = context.settings
        self._bounds = bounds or Bounds()
        self._pace = pace or Pace()
        self._states: list[State] = []

    async def run(self) -> None:
        """Work until cancelled; what is in flight then is finished, if that is quick."""
        gate = Gate(self._context)
        async with (
            open_session() as session,
            Journal(self._context.dir / "pulled.sqlite", self._context.log) as journal,
            asyncio.TaskGroup() as tasks,
        ):
            named = self._settings.named()
            links = {n: self._link(n, server, session, journal) for n, server in named.items()}
            self._report()
            tasks.create_task(gate.run(), name="queue gate")
            for name, link in links.items():
                tasks.create_task(link.sender.run(), name=f"queue {name} sends")
                tasks.create_task(poll(link, gate), name=f"queue {name} pulls")
                tasks.create_task(beat(link), name=f"queue {name} beats")
            await self._hand_out(links)

    def _link(
        self,
        name: str,
        server: ServerSettings,
        session: aiohttp.ClientSession,
        journal: Journal,
    ) -> Link:
        client = Client(session, server, self._bounds)
        state = State(server.url, self._report)
        self._states.append(state)
        sender = Sender(client, state, self._context.log, self._pace)
        return Link(name, server, self._context, self._pace, journal, client, state, sender)

    async def _hand_out(self, links: dict[str, Link]) -> None:
        """Give each ended job to its server's sender."""
        async with aclosing(self._context.deliveries()) as deliveries:
            async for delivery in deliveries:
                link = links.get(delivery.reply["server"])
                if link is None:
                    self._context.log.warning(
                        "job %s came from %r, which is not configured any more",
                        delivery.job.id,
                        delivery.reply["server"],
                    )
                    await delivery.retry(UNKNOWN_S)
                else:
                    link.sender.owe(answers.delivery(link, delivery))

    def _report(self) -> None:
        """One sentence about all servers; it changes, and is logged, when one of them does."""
        ok = all(state.ok for state in self._states)
        self._context.report(ok, "; ".join(state.text for state in self._states))
