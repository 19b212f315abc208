"""The way out: what has ended goes to the outbox, to done or to failed, as often as it takes."""

from __future__ import annotations

import asyncio

from vellumd import Delivery, Job, JobStatus, errors
from vellumd_hotfolder import boxes, plan, wire
from vellumd_hotfolder.reporter import first_name
from vellumd_hotfolder.site import Site

RETRY_S = 5.0
"""Seconds until a result is tried again that could not be written."""
UNSETTLED_S = 0.5
"""Seconds until it is tried again while the folder is being put in order."""


class Outlet:
    """Delivers the ended jobs of one folder, one after the other."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self._owed: asyncio.Queue[Delivery] = asyncio.Queue()

    def owe(self, delivery: Delivery) -> None:
        """An ended job of this folder."""
        self._owed.put_nowait(delivery)

    async def run(self) -> None:
        """Deliver until cancelled."""
        while True:
            await self._deliver(await self._owed.get())

    async def _deliver(self, delivery: Delivery) -> None:
        job = delivery.job
        if not self._site.standing or not await self._site.in_thread(self._site.root.there):
            await delivery.retry(RETRY_S if self._site.closed_in else UNSETTLED_S)
            return
        try:
            await self._put_back(job, delivery.reply[1])
            self._site.tell(closed_out="")
        except OSError as error:
            self._site.tell(closed_out=await self._site.trouble_of(error))
            await delivery.retry(RETRY_S)
        else:
            await delivery.delivered()
            self._site.in_work.discard(job.id)
            self._site.wake.set()
        self._site.changed.set()

    async def _put_back(self, job: Job, kind: plan.Kind) -> None:
        """Results to the outbox and originals to done, or both halves of a failure."""
        keep = self._site.settings.done == "keep"
        try:
            found = [await self._site.context.jobs.result(job.id, r.n) for r in job.results]
            if job.status is not JobStatus.DONE:
                await self._site.context.jobs.result(job.id)  # raises why there is none
        except errors.VellumError as error:
            sentence = wire.sentence(error, job.id)
            file = await self._site.in_thread(
                boxes.refuse, self._site.root, self._site.claims, job.id, sentence
            )
            placed: list[str] = []
        else:
            file, placed = await self._site.in_thread(
                lambda: boxes.deliver(
                    self._site.root, self._site.claims, job.id, kind, found, keep=keep
                )
            )
        self._site.report.add(job, file or first_name(job), placed)
