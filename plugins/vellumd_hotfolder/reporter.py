"""Keeps STATUS.txt and REPORT.csv of one folder as things are."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from contextlib import suppress
from datetime import datetime, timedelta
from typing import Any

from vellumd import Job, JobFilter, errors
from vellumd_hotfolder import report
from vellumd_hotfolder.site import Site

WRITE_S = 10.0
"""Seconds between two writings: sync tools send each one on."""


class Reporter:
    """Writes both files when something has changed."""

    def __init__(self, site: Site) -> None:
        self._site = site

    async def run(self) -> None:
        """Write what has changed until cancelled."""
        last = ""
        while True:
            await self._site.changed.wait()
            self._site.changed.clear()
            with suppress(OSError):  # it tells how things are; things go on without
                last = await self._write(last)
            await asyncio.sleep(WRITE_S)

    async def _write(self, last: str) -> str:
        """Write both files where they have changed; the status as written."""
        if not await self._site.in_thread(self._site.root.there):
            return last
        with suppress(OSError):  # a spreadsheet may hold it
            await self._site.in_thread(self._site.report.write)
        status = self._site.status
        status.in_work, status.ready_at = len(self._site.in_work), await self._ready_at()
        failed = await self._site.in_thread(report.failures, self._site.root.failed)
        trouble = " ".join(filter(None, [status.trouble, self._site.trouble]))
        text = status.text(self._site.report.done, failed, trouble)
        if text != last:
            await self._site.in_thread(report.write_status, self._site.root, text)
        return text

    async def _ready_at(self) -> datetime | None:
        """When the newest job will have ended, to the minute, if that is known."""
        if self._site.newest not in self._site.in_work:
            return None
        with suppress(errors.VellumError):
            job = await self._site.context.jobs.get(self._site.newest)
            if job.eta_s is not None:
                return datetime.now().astimezone() + timedelta(seconds=job.eta_s)
        return None

    async def catch_up(self) -> None:
        """Give ended jobs their line in REPORT.csv that a kill has kept from it."""
        wanted, cursor = JobFilter(source=self._site.context.name, client_id=self._site.name), None
        while True:
            page = await self._site.context.jobs.list(wanted, cursor)
            missing = [job for job in page.jobs if not self._site.report.knows(job.id)]
            for job in missing:
                if job.status.terminal and job.id not in self._site.in_work:
                    self._site.report.add(job, first_name(job), [])
            cursor = page.next
            if cursor is None or not missing:
                return


def first_name(job: Job) -> str:
    """The name of a job's first picture, while it is kept."""
    images: Iterable[Any] = job.request.images if job.request else ()
    return next((image.name for image in images), "")
