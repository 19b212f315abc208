"""Signs of life for servers that lease jobs: who is silent loses its job to another worker."""

from __future__ import annotations

import asyncio
from contextlib import suppress

from vellumd import JobFilter, JobStatus
from vellumd_queue.client import ServerDownError
from vellumd_queue.link import Link
from vellumd_queue.mapping import Id


async def beat(link: Link) -> None:
    """Tell the server every `heartbeat` seconds which of its jobs are in our hands, and of a
    new one at once; for ever, or not at all where that is unset.
    """
    if link.settings.heartbeat is None:
        return
    while True:
        for id in {str(id): id for id in [*await _unfinished(link), *link.sender.ids]}.values():
            with suppress(ServerDownError):  # results tell how the server is
                await link.client.beat(id)
        with suppress(TimeoutError):
            async with asyncio.timeout(link.settings.heartbeat):
                await link.taken.wait()
        link.taken.clear()


async def _unfinished(link: Link) -> list[Id]:
    """Ids of the server's jobs that wait or run; more than a few there never are."""
    ids: list[Id] = []
    for status in (JobStatus.RUNNING, JobStatus.QUEUED):
        wanted = JobFilter(status=status, source=link.context.name, client_id=link.name)
        page = await link.context.jobs.list(wanted)
        metas = (job.meta for job in page.jobs)
        ids += [id for meta in metas if isinstance(meta, dict) and isinstance(id := meta["id"], Id)]
    return ids
