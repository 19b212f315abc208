"""The one consumer of a lane: takes the next job, has it edited, reports how it ended."""

from __future__ import annotations

import asyncio
import logging

from vellumd import errors
from vellumd.jobs import Jobs
from vellumd.models import Job
from vellumd.protocol import Done, PreviewImage, Step
from vellumd.supervisor import EngineDiedError, Supervisor

log = logging.getLogger(__name__)


class Executor:
    """Strictly one job at a time for one engine."""

    def __init__(self, jobs: Jobs, supervisor: Supervisor, lane: int = 0) -> None:
        self._jobs = jobs
        self._supervisor = supervisor
        self._lane = lane
        self._draining = False
        self._cancelled: set[str] = set()
        self._idle = asyncio.Event()
        self._idle.set()
        jobs.cancel_running = self.cancel

    async def run(self) -> None:
        """Work until drained or cancelled. A job is claimed only by a loaded engine."""
        while not self._draining:
            await self._supervisor.ready()
            self._idle.clear()
            job = None if self._draining else await self._jobs.claim(self._lane)
            if job is not None:
                await self._execute(job)
            self._idle.set()
            if job is None:
                await self._jobs.queued()

    def cancel(self, job_id: str) -> None:
        """Stop a running job, also one whose claim is on its way to us."""
        self._cancelled.add(job_id)
        self._supervisor.cancel(job_id)

    async def drain(self, seconds: float) -> None:
        """Claim nothing more; give the running job `seconds`, then put it back.

        It is first in the queue at the next start, and not marked as failed.
        """
        self._draining = True
        try:
            async with asyncio.timeout(seconds):
                await self._idle.wait()
        except TimeoutError:
            log.warning("the running job did not finish within %.0f s; it will run again", seconds)
            self._supervisor.kill()
            await self._idle.wait()

    async def _execute(self, job: Job) -> None:
        """Run one job to whatever end it has."""
        try:
            await self._edit(job)
        except EngineDiedError:
            if not await self._jobs.adopt(job.id):
                await self._jobs.requeue(job.id, engine_death=not self._draining)
        except errors.VellumError as error:
            await self._jobs.failed(job.id, error)
        self._cancelled.discard(job.id)

    async def _edit(self, job: Job) -> None:
        assert job.request is not None
        if job.id in self._cancelled:
            raise errors.Cancelled("The job was cancelled.")
        async for frame in self._supervisor.edit(job.id, job.request):
            await self._report(job, frame)

    async def _report(self, job: Job, frame: Step | PreviewImage | Done) -> None:
        if isinstance(frame, Step):
            self._jobs.progress(job.id, frame.progress)
        elif isinstance(frame, PreviewImage):
            self._jobs.preview(job.id, frame.step, frame.jpeg)
        else:
            await self._jobs.done(job.id, frame.results, frame.elapsed_s, frame.warnings)
