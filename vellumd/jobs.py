"""The jobs: what every door calls, and what the executor reports back."""

from __future__ import annotations

import asyncio
import json
import re
from collections import deque
from collections.abc import AsyncGenerator, Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

from pydantic import JsonValue

from vellumd import errors
from vellumd.deliveries import Deliveries
from vellumd.events import EventBus, Keep
from vellumd.model_card import ModelCard
from vellumd.models import (
    ENDS,
    JOB_ID,
    META_BYTES,
    EditRequest,
    EventType,
    Job,
    JobEvent,
    JobStatus,
    Notice,
    Progress,
    ResolvedEdit,
    Result,
    moment,
    new_job_id,
    now_ms,
)
from vellumd.preset_file import FILE, PresetFile
from vellumd.presets import Presets
from vellumd.settings import Settings
from vellumd.staging import Staging
from vellumd.store.room import Room
from vellumd.store.rows import NewJob
from vellumd.store.spool import Spool
from vellumd.store.store import Store

PAGE = 50
"""Jobs in one page of a list."""


@dataclass(frozen=True)
class JobFilter:
    """Which jobs to list; None takes all."""

    status: JobStatus | None = None
    source: str | None = None
    batch: str | None = None
    client_id: str | None = None

    def takes(self, new: NewJob) -> bool:
        """Whether it would list a job that is just coming."""
        asked = {name: value for name, value in asdict(self).items() if value is not None}
        return all(getattr(new, name, None) == value for name, value in asked.items())


@dataclass(frozen=True)
class Page:
    """Jobs, newest first, and the cursor of the next page."""

    jobs: list[Job]
    next: str | None


class Jobs:
    """All jobs of one daemon.

    `cancel_running` and `is_held` are set by the executor: the one stops a running edit,
    the other says whether waiting jobs are kept from starting. While `closing`, nothing
    more is accepted.
    """

    def __init__(
        self,
        settings: Settings,
        card: ModelCard,
        store: Store,
        spool: Spool,
        bus: EventBus,
        room: Room | None = None,
    ) -> None:
        self._limits = settings.limits
        self.presets = Presets(settings, card, PresetFile(settings.store.dir / FILE))
        self._store = store
        self._spool = spool
        self._room = room or Room(spool.root, spool.usage, settings.store)
        self.staging = Staging(spool, self._room)
        self._bus = bus
        self._accepting: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._taking: set[asyncio.Task[Job]] = set()
        self._progress: dict[str, Progress] = {}
        self._durations: deque[float] = deque(maxlen=16)
        self._queued: dict[int, asyncio.Event] = {}
        self.closing = False
        self._over = False
        self.cancel_running: Callable[[str], None] = lambda job_id: None
        self.is_held: Callable[[], bool] = lambda: False
        self.deliveries = Deliveries(store, bus, self.get)
        bus.observers.append(self._observe)

    async def submit(
        self,
        request: EditRequest,
        source: str,
        *,
        key: str | None = None,
        job_id: str | None = None,
        reply: JsonValue = None,
        retry_of: str | None = None,
    ) -> Job:
        """See `TransportJobs.submit`."""
        if self.closing:
            raise errors.EngineUnavailable("The daemon is stopping.", retry_after=10)
        check_reply(reply)
        if job_id and not JOB_ID.fullmatch(job_id):
            raise errors.BadRequest("job_id: it is no UUID in lower case.")
        edit, warnings = self.presets.resolve(request)
        new = NewJob(
            id=job_id or new_job_id(),
            edit=edit,
            source=source,
            digest=request.digest(),
            key=key,
            client_id=request.client_id,
            batch=request.batch,
            retry_of=retry_of,
            meta=request.meta,
            reply=reply,
            warnings=warnings,
        )
        # Goes on without a sender that gives up, so that it cannot meet its own repetition:
        # a task of the loop, since a group would end it with the sender.
        accept = self._accept_once(new, request, bool(job_id or key))
        accepting = asyncio.get_running_loop().create_task(accept, name=f"accept {new.id}")
        self._taking.add(accepting)
        accepting.add_done_callback(self._taken)
        return self._live(await asyncio.shield(accepting))

    def follow(self, source: str, wanted: JobFilter, reply: JsonValue) -> None:
        """See `TransportContext.follow`."""
        if wanted.status is not None:
            raise ValueError("follow: how a job will end is not known when it comes")
        check_reply(reply)
        self.deliveries.follow(source, reply, wanted)

    def _taken(self, accepting: asyncio.Task[Job]) -> None:
        self._taking.discard(accepting)
        if not accepting.cancelled():
            accepting.exception()  # the sender has heard of it, or is gone

    async def _accept_once(self, new: NewJob, request: EditRequest, repeatable: bool) -> Job:
        """Two senders of one id would write one folder; each other id has its own."""
        async with self._accepting.setdefault(new.id, asyncio.Lock()):
            known = await self._store.accepted(new) if repeatable else None
            job = known or await self._accept(new, request)
            if job.status.terminal:
                self.deliveries.wake()
            return job

    async def _accept(self, new: NewJob, request: EditRequest) -> Job:
        self._room.check()
        new = replace(new, followers=self.deliveries.followers(new))
        make = partial(self._spool.create, new.id, new.edit, _record(new, request))
        try:
            job, created = await self._store.add(new, self._limits.queue, make)
        except errors.VellumError:
            await self._discard(new.id)
            raise
        if not created:
            await self._discard(new.id)
        return job

    async def _discard(self, job_id: str) -> None:
        """Remove the folder of a job that was not accepted after all."""
        try:
            await self._store.get(job_id)
        except errors.NotFound:
            await asyncio.to_thread(self._spool.remove, job_id)

    async def get(self, job_id: str) -> Job:
        """The job; raises `NotFound`, and `Expired` where only its id is left."""
        return self._live(kept(await self._store.get(job_id)))

    async def find(self, source: str, key: str) -> Job:
        """The job that was submitted under `key`; raises `NotFound`."""
        return self._live(await self._store.find(source, key))

    async def list(self, wanted: JobFilter, cursor: str | None) -> Page:
        """A page of jobs, newest first; raises `BadRequest` for a made-up cursor."""
        if cursor is not None and not re.fullmatch(r"[0-9]{1,18}", cursor):
            raise errors.BadRequest("cursor: it is none that this daemon gave.")
        before = int(cursor) if cursor else 2**62
        rows = await self._store.page(asdict(wanted), before, PAGE + 1)
        following = str(rows[PAGE - 1][0]) if len(rows) > PAGE else None
        return Page([self._live(job) for _, job in rows[:PAGE]], following)

    def end_waits(self) -> None:
        """No job ends any more before the daemon does: who waits for one has it as it is."""
        self._over = True
        self._bus.look_again()

    async def wait(self, job_id: str, seconds: float) -> Job:
        """The job once it has ended, or as it is after `seconds` or when the daemon ends."""
        with self._bus.listen(job_id) as listener:
            listener.caught_up()
            job = await self.get(job_id)
            try:
                async with asyncio.timeout(seconds):
                    while not (job.status.terminal or self._over):
                        await listener.next()
                        listener.caught_up()
                        job = await self.get(job_id)
            except TimeoutError:
                return await self.get(job_id)
        return job

    async def cancel(self, job_id: str) -> Job:
        """End a job that has not ended; raises `NotFound`."""
        await self._store.get(job_id)
        if await self._store.cancel(job_id):
            self.cancel_running(job_id)
        return await self.get(job_id)

    async def retry(self, job_id: str, source: str) -> Job:
        """A new job that repeats an old one exactly; raises `NotFound`, `Expired`."""
        old = kept(await self._store.get(job_id))
        assert old.request is not None
        await asyncio.to_thread(self._spool.restage, job_id, old.request)
        known = old.request.preset in self.presets.named
        request = repeat(old, old.request if known else without_preset(old.request))
        return await self.submit(request, source, retry_of=job_id)

    async def set_priority(self, job_id: str, priority: int) -> Job:
        """Move a queued job; raises `NotFound`, `BadRequest`."""
        if not -100 <= priority <= 100:
            raise errors.BadRequest("priority: it must be between -100 and 100.")
        await self._store.set_priority(job_id, priority)
        return await self.get(job_id)

    async def delete(self, job_id: str) -> None:
        """Forget an ended job; raises `NotFound`, `NotDone`."""
        try:
            await self._store.forget(job_id)
        except errors.StorageFull:  # to forget takes room too: its pictures give it
            await self._store.check_forgettable(job_id)
            await asyncio.to_thread(self._spool.remove, job_id)
            await self._store.forget(job_id)
        await asyncio.to_thread(self._spool.remove, job_id)

    async def result(self, job_id: str, n: int) -> Path:
        """File of result `n`; raises `NotDone`, `NotFound`, `Expired` or the job's error."""
        job = kept(await self._store.get(job_id))
        if job.error is not None:
            raise errors.from_code(job.error.code, job.error.message)
        if job.status is JobStatus.CANCELLED:
            raise errors.Cancelled("The job was cancelled.")
        if job.status is not JobStatus.DONE:
            raise errors.NotDone("The job has not ended.")
        if not 1 <= n <= len(job.results):
            raise errors.NotFound(f"The last result of the job is {len(job.results)}.")
        return await asyncio.to_thread(self._spool.result, job_id, job.results[n - 1])

    async def input(self, job_id: str, n: int) -> Path:
        """File of input `n`; raises `NotFound`, `Expired`."""
        job = kept(await self._store.get(job_id))
        assert job.request is not None
        return await asyncio.to_thread(self._spool.input, job_id, job.request, n)

    async def mask(self, job_id: str) -> Path:
        """File of the mask; raises `NotFound`, `Expired`."""
        job = kept(await self._store.get(job_id))
        assert job.request is not None
        return await asyncio.to_thread(self._spool.mask, job_id, job.request)

    # events

    async def events(
        self,
        job_id: str | None,
        since: int | None,
        *,
        previews: bool,
        keep: Keep | None = None,
    ) -> AsyncGenerator[JobEvent, None]:
        """See `TransportJobs.events`: replay from the store, then what happens, for ever."""
        with self._bus.listen(job_id, previews, keep) as listener:
            last = await self._store.last_seq()  # of another store, `since` may lie beyond it
            seen = last if since is None else min(since, last)
            while True:
                event = await listener.next()
                if event is None:
                    listener.caught_up()
                    while missed := await self._store.events(job_id, seen):
                        for event in missed:
                            yield event
                        seen = missed[-1].seq or seen
                elif event.seq is None:
                    yield event
                elif event.seq > seen:
                    seen = event.seq
                    yield event

    # what the executor does

    async def recover(self) -> int:
        """Put in order what a dead daemon left; the number of jobs that were running.

        A running job whose results are whole is done, without the engine; the others go
        to the head of the queue. Folders without a row are removed.
        """
        left = await self._store.running()
        for job in left:
            if not await self.adopt(job.id):
                await self._store.requeue(job.id, daemon_death=True)
        known = await self._store.ids()
        await asyncio.to_thread(self._spool.sweep, known)
        return len(left)

    async def claim(self, lane: int) -> Job | None:
        """The next job of a lane, now running; None if none waits."""
        return await self._store.claim(lane)

    async def queued(self, lane: int) -> None:
        """Wait until a job of a lane waits; for the one executor of that lane."""
        changed = self._queued.setdefault(lane, asyncio.Event())
        while True:
            changed.clear()
            if await self._store.has_queued(lane):
                return
            await changed.wait()

    async def is_paused(self, lane: int) -> bool:
        """Whether a lane was paused, by this daemon or an earlier one."""
        return await self._store.is_paused(lane)

    async def set_paused(self, lane: int, paused: bool) -> None:
        """Remember over restarts whether a lane starts jobs."""
        await self._store.set_paused(lane, paused)

    async def has_room(self) -> bool:
        """Whether a result can be written."""
        return await asyncio.to_thread(self._spool.has_room)

    def progress(self, job_id: str, progress: Progress) -> None:
        """A running job came further."""
        self._progress[job_id] = progress
        self._publish_live(job_id, "step", progress.model_dump(mode="json"))

    def preview(self, job_id: str, step: int, jpeg: str) -> None:
        """A running job can be looked at: base64 of a small JPEG."""
        self._publish_live(job_id, "preview", {"step": step, "jpeg": jpeg})

    async def done(
        self,
        job_id: str,
        results: tuple[Result, ...],
        elapsed_s: float,
        warnings: tuple[Notice, ...],
    ) -> None:
        """A running job has its results on disk."""
        await self._store.done(job_id, results, elapsed_s, warnings)
        self._spool.usage.add(sum(result.bytes for result in results))
        if "engine_cold" not in (warning.code for warning in warnings):
            self._durations.append(elapsed_s)

    async def failed(
        self, job_id: str, error: errors.VellumError, warnings: tuple[Notice, ...] = ()
    ) -> None:
        """A running job ended without result; `cancelled` ends it as such."""
        if isinstance(error, errors.Cancelled):
            await self._store.cancelled(job_id)
        else:
            await self._store.failed(job_id, error, warnings)

    async def adopt(self, job_id: str) -> bool:
        """Take over what a dead engine or daemon finished but could not report."""
        found = await asyncio.to_thread(self._spool.adopt, job_id)
        if found is not None:
            await self.done(job_id, found.results, found.elapsed_s, found.warnings)
        return found is not None

    async def requeue(
        self, job_id: str, *, engine_death: bool = False, untried: bool = False
    ) -> None:
        """A running job's run ended early: it is first again, or fails for good.

        `untried`: it was not the job's fault, so the attempt does not count.
        """
        await self._store.requeue(job_id, engine_death=engine_death, untried=untried)

    def queue(self) -> dict[str, int]:
        """How many jobs wait and run."""
        return {status: self._store.tally[status] for status in ("queued", "running")}

    # inside

    def _observe(self, event: JobEvent) -> None:
        if event.type == "queued":
            for changed in self._queued.values():
                changed.set()
        elif event.type in ENDS:
            self._progress.pop(event.job_id, None)

    def _publish_live(self, job_id: str, type: EventType, data: dict[str, Any]) -> None:
        event = JobEvent(job_id=job_id, type=type, at=moment(now_ms()), data=data)
        self._bus.publish([event])

    def _live(self, job: Job) -> Job:
        """The job with what only this process knows: progress and time left."""
        if job.status is JobStatus.RUNNING:
            progress = self._progress.get(job.id)
            eta = progress.eta_s if progress else None
            return job.model_copy(update={"progress": progress, "eta_s": eta})
        if job.position is not None and self._durations and not self.is_held():
            mean = sum(self._durations) / len(self._durations)
            return job.model_copy(update={"eta_s": round(mean * (job.position + 1), 1)})
        return job


def check_reply(reply: JsonValue) -> None:
    """Raise `BadRequest` for a reply that is too long."""
    if len(json.dumps(reply).encode()) > META_BYTES:
        raise errors.BadRequest(f"reply: it is longer than {META_BYTES} bytes.")


def kept(job: Job) -> Job:
    """The job, if more is left of it than its id; raises `Expired`."""
    if job.request is None:
        raise errors.Expired("The job's time is over: its pictures and its request are removed.")
    return job


def repeat(job: Job, edit: ResolvedEdit) -> EditRequest:
    """The request that asks for exactly what `job` did."""
    asked = edit.model_dump(exclude={"model", "scheduler"})
    return EditRequest.parse(
        {**asked, "batch": job.batch, "client_id": job.client_id, "meta": job.meta}
    )


def without_preset(edit: ResolvedEdit) -> ResolvedEdit:
    """The edit as it was made by a preset that is gone: it holds all that the preset said."""
    return edit.model_copy(update={"preset": None})


def _record(new: NewJob, request: EditRequest) -> dict[str, Any]:
    """What `request.json` says: enough to make the row again."""
    return {
        "id": new.id,
        "source": new.source,
        "key": new.key,
        "retry_of": new.retry_of,
        "created": new.created,
        "reply": new.reply,
        "followers": new.followers,
        "lane": new.lane,
        "warnings": [warning.model_dump() for warning in new.warnings],
        "digest": new.digest,
        "request": request.model_dump(mode="json", exclude_none=True),
        "resolved": new.edit.model_dump(mode="json"),
    }
