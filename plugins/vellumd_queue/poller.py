"""Pulls jobs from one server, when they can start soon and as often as is gentle."""

from __future__ import annotations

import asyncio
import sqlite3

from vellumd import sending
from vellumd_queue import intake, mapping
from vellumd_queue.backoff import Backoff, Idling
from vellumd_queue.client import ServerDownError
from vellumd_queue.gate import Gate
from vellumd_queue.journal import Entry
from vellumd_queue.link import Link
from vellumd_queue.mapping import GarbageError

STORE_S = 2.0
"""Seconds between two tries to write down what was pulled, on a disk that takes nothing."""


async def poll(link: Link, gate: Gate) -> None:
    """Finish what was pulled before, then pull for ever."""
    for left in await link.journal.entries(link.name):
        await intake.take(link, left)
    idling, backoff = Idling(link.pace), Backoff(link.pace)
    clock = asyncio.get_running_loop().time
    while True:
        async with gate.turn():
            asked = clock()
            try:
                entry = await sending.finish(_pull(link))
            except (ServerDownError, GarbageError) as down:
                link.state.failed("jobs", str(down))
                pause = backoff.pause(getattr(down, "retry_after", None))
            else:
                link.state.succeeded("jobs")
                backoff.succeeded()
                new = entry is not None and await intake.take(link, entry)
                if entry is not None:
                    idling.found()
                # A server that gives the same job again and again is asked no more often.
                pause = 0.0 if new else idling.pause()
        await asyncio.sleep(asked + pause - clock())


async def _pull(link: Link) -> Entry | None:
    """Ask for a job, and have it on disk when this returns."""
    body = await link.client.next()
    job = await asyncio.to_thread(mapping.find_job, body, link.settings.map)
    if job is None:
        return None
    mapping.read_id(job, link.settings.map)
    told = False
    while True:
        try:
            return await link.journal.keep(link.name, body)
        except sqlite3.Error as error:
            if not told:
                link.context.log.error("what was pulled cannot be written down yet: %s", error)
            told = True
            await asyncio.sleep(STORE_S)
