"""The one consumer of a lane: takes the next job, has it edited, reports how it ended."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import aclosing, suppress
from functools import partial
from typing import Literal, TypeVar

from vellumd import errors
from vellumd.jobs import Jobs
from vellumd.models import Job
from vellumd.protocol import Done, PreviewImage, Step
from vellumd.supervisor import EditFailedError, EngineAbsentError, EngineDiedError, Supervisor

log = logging.getLogger(__name__)

T = TypeVar("T")
STORE_RETRY_S = 2.0
"""Seconds until a change is tried again that the store could not take."""
UNSTORED_MOST = 3
"""Runs of one job that find no room for the result, each begun when there was some."""
ROOM_S = 2.0
"""Seconds between two looks whether the disk has room for results again."""
PUT_BACK_S = 3.0
"""Seconds that putting back a job may take at the end."""


class Executor:
    """Strictly one job at a time for one engine. Implements `context.Control`."""

    def __init__(self, jobs: Jobs, supervisor: Supervisor, lane: int = 0) -> None:
        self._jobs = jobs
        self._supervisor = supervisor
        self._lane = lane
        self._draining = False
        self._full = False
        self._acts = 0
        self._resumed = asyncio.Event()
        self._resumed.set()
        self._changed = asyncio.Event()
        self._cancelled: set[str] = set()
        self._unstored: dict[str, int] = {}
        self._idle = asyncio.Event()
        self._idle.set()
        jobs.cancel_running = self.cancel
        jobs.is_held = lambda: bool(self.held)

    @property
    def held(self) -> Literal["", "paused", "storage_full", "stopping"]:
        """Why no job is started although the engine could; empty if jobs are."""
        if self._draining:
            return "stopping"
        if self._full:
            return "storage_full"
        return "" if self._resumed.is_set() else "paused"

    def sign(self) -> tuple[int, int | None] | None:
        """Another value after each thing it did; None while it rightly waits.

        During an edit the engine's signs of life are its own.
        """
        if self._idle.is_set() and not (self._jobs.queue()["queued"] and self._may_start()):
            return None
        return self._acts, self._supervisor.sign() if self._supervisor.editing else None

    async def run(self) -> None:
        """Work until drained or cancelled. A job is claimed only by a loaded engine."""
        self._show_paused(await self._kept(partial(self._jobs.is_paused, self._lane)))
        while not self._draining:
            await self._kept(partial(self._jobs.queued, self._lane))
            await self._resumed.wait()
            await self._engine()
            self._idle.clear()
            if self._may_start():
                await self._work()
            self._idle.set()
            if self._full:
                await self._room()

    async def _engine(self) -> None:
        """Wait for the engine, until somebody pauses the lane or unloads the engine."""
        self._changed.clear()
        async with asyncio.TaskGroup() as tasks:
            waits = (self._supervisor.ready(), self._changed.wait())
            waiting = [tasks.create_task(wait) for wait in waits]
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            for task in waiting:
                task.cancel()

    def _may_start(self) -> bool:
        return self._supervisor.loaded and not self.held

    async def _work(self) -> None:
        job = await self._kept(partial(self._jobs.claim, self._lane))
        if job is not None:
            await self._execute(job)

    async def _room(self) -> None:
        """Wait until results can be written again."""
        log.error("no result can be stored; the queue waits for room")
        while self._full:
            await asyncio.sleep(ROOM_S)
            self._full = not await self._jobs.has_room()
        log.info("there is room for results again; the queue goes on")

    # control

    async def pause(self) -> None:
        """See `context.Control`."""
        await self._jobs.set_paused(self._lane, True)
        self._show_paused(True)

    async def resume(self) -> None:
        """See `context.Control`."""
        await self._jobs.set_paused(self._lane, False)
        self._show_paused(False)

    async def load(self) -> None:
        """See `context.Control`."""
        self._supervisor.load()

    async def unload(self) -> None:
        """See `context.Control`."""
        self._supervisor.unload()
        self._changed.set()

    def _show_paused(self, paused: bool) -> None:
        if paused:
            self._resumed.clear()
        else:
            self._resumed.set()
        self._changed.set()

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

    # one job

    async def _execute(self, job: Job) -> None:
        """Run one job to whatever end it has, and write that down."""
        try:
            done = await self._edit(job)
        except EngineAbsentError:
            await self._kept(partial(self._jobs.requeue, job.id, untried=True))
        except EngineDiedError:
            await self._kept(partial(self._mourn, job.id))
        except EditFailedError as failure:
            await self._fail(job.id, failure)
        except errors.Cancelled as error:
            await self._kept(partial(self._jobs.failed, job.id, error))
        else:
            await self._kept(
                partial(self._jobs.done, job.id, done.results, done.elapsed_s, done.warnings)
            )
            self._unstored.pop(job.id, None)
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

    async def _fail(self, job_id: str, failure: EditFailedError) -> None:
        """The edit failed; one whose result found no room runs again once there is some."""
        change = partial(self._jobs.failed, job_id, failure.error, failure.warnings)
        unstored = self._unstored.pop(job_id, 0) + 1
        if failure.unstored:
            self._full = True
            if unstored < UNSTORED_MOST:
                self._unstored[job_id] = unstored
                change = partial(self._jobs.requeue, job_id, untried=True)
        await self._kept(change)

    async def _mourn(self, job_id: str) -> None:
        """The engine died; what it had finished counts, else the job runs again."""
        if not await self._jobs.adopt(job_id):
            await self._jobs.requeue(job_id, engine_death=not self._draining)

    async def _kept(self, change: Callable[[], Awaitable[T]]) -> T:
        """Make a change of the store, again and again while its disk is full or locked."""
        while True:
            self._acts += 1
            try:
                return await change()
            except (errors.StorageFull, errors.EngineUnavailable) as error:
                log.warning("the queue waits: %s", error.message)
                await asyncio.sleep(STORE_RETRY_S)
