"""The one consumer of a lane: takes the next job, has it edited, reports how it ended."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import aclosing, suppress
from functools import partial
from typing import TypeVar

from vellumd import errors
from vellumd.jobs import Jobs
from vellumd.models import Job
from vellumd.protocol import Done, PreviewImage, Step
from vellumd.supervisor import EngineAbsentError, EngineDiedError, Supervisor

log = logging.getLogger(__name__)

T = TypeVar("T")
STORE_RETRY_S = 2.0
"""Seconds until a change is tried again that the store could not take."""
PUT_BACK_S = 3.0
"""Seconds that putting back a job may take at the end."""


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
            job = None if self._draining else await self._kept(self._claim)
            if job is not None:
                await self._execute(job)
            self._idle.set()
            if job is None:
                await self._jobs.queued()

    async def _claim(self) -> Job | None:
        return await self._jobs.claim(self._lane)

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
            with suppress(TimeoutError):  # a store that takes nothing: recovery puts it back
                async with asyncio.timeout(PUT_BACK_S):
                    await self._idle.wait()

    async def _execute(self, job: Job) -> None:
        """Run one job to whatever end it has, and write that down."""
        try:
            done = await self._edit(job)
        except EngineAbsentError:
            await self._kept(partial(self._jobs.requeue, job.id, engine_death=False))
        except EngineDiedError:
            await self._kept(partial(self._mourn, job.id))
        except errors.VellumError as error:
            await self._kept(partial(self._jobs.failed, job.id, error))
        else:
            await self._kept(
                partial(self._jobs.done, job.id, done.results, done.elapsed_s, done.warnings)
            )
        self._cancelled.discard(job.id)

    async def _edit(self, job: Job) -> Done:
        assert job.request is not None
        if job.id in self._cancelled:
            raise errors.Cancelled("The job was cancelled.")
        async with aclosing(self._supervisor.edit(job.id, job.request)) as frames:
            async for frame in frames:
                if isinstance(frame, Step):
                    self._jobs.progress(job.id, frame.progress)
                elif isinstance(frame, PreviewImage):
                    self._jobs.preview(job.id, frame.step, frame.jpeg)
                else:
                    return frame
        raise EngineDiedError

    async def _mourn(self, job_id: str) -> None:
        """The engine died; what it had finished counts, else the job runs again."""
        if not await self._jobs.adopt(job_id):
            await self._jobs.requeue(job_id, engine_death=not self._draining)

    async def _kept(self, change: Callable[[], Awaitable[T]]) -> T:
        """Make a change of the store, again and again while its disk is full or locked."""
        while True:
            try:
                return await change()
            except (errors.StorageFull, errors.EngineUnavailable) as error:
                log.warning("the queue waits: %s", error.message)
                await asyncio.sleep(STORE_RETRY_S)
