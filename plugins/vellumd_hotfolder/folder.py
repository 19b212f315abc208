"""One hot folder at work: looks, takes what has settled, puts results back, reports."""

from __future__ import annotations

import asyncio
import errno
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import datetime, timedelta
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import JsonValue

from vellumd import Delivery, Job, JobFilter, JobStatus, errors, new_job_id
from vellumd_hotfolder import boxes, names, plan, report, scan, watch, whole, wire
from vellumd_hotfolder.claims import Changed, Claims
from vellumd_hotfolder.plan import Order, Plan
from vellumd_hotfolder.root import Root
from vellumd_hotfolder.settle import StabilityTracker

if TYPE_CHECKING:
    from vellumd import TransportContext
    from vellumd_hotfolder.plugin import FolderSettings

T = TypeVar("T")

SETTLE_S, SETTLE_POLLED_S = 2.0, 5.0
SCAN_S, SCAN_POLLED_S = 10.0, 5.0
"""What `settle_s` and `scan_s` are where nothing is set."""
TOGETHER = 8
"""Orders taken at once: their syncs share a trip to the disk."""
PASS_S = 1.0
"""Seconds of taking after which there is another look: new files shall be timed well."""
GAP_S, GAP_SHARE = 0.05, 4.0
"""Least seconds between two looks, and in times of what one takes: a burst of events
costs a fifth of a core at most."""
HOLD_S = 5.0
"""Seconds until files are offered again that found the queue or the disk full."""
RETRY_S = 5.0
"""Seconds until a result is tried again that could not be written."""
WRITE_S = 10.0
"""Seconds between two writings of STATUS.txt and REPORT.csv."""

AWAY = "The folder is not there; its disk may be away. Nothing is lost: it goes on once it is back."
FULL = "The disk is full: results wait until there is room."
CLOSED = "vellumd cannot write here: results wait until it can. Give it the right to, or make room."
HELD = {
    "queue_full": "The queue is full: files stay in the inbox until there is room.",
    "storage_full": "vellumd's own disk is full: files stay in the inbox until there is room.",
}
NO_PROMPT = "no prompt; write NAME.txt beside it, or prompt.txt into the inbox"
NOT_READY = f"the file {names.READY} is missing"


class HotFolder:
    """One hot folder. `on_change` is called when `trouble` has become another."""

    def __init__(
        self,
        name: str,
        settings: FolderSettings,
        context: TransportContext,
        store: str,
        on_change: Callable[[], None],
    ) -> None:
        assert settings.root is not None
        self.name = name
        self.root = Root(settings.root, store)
        self._settings = settings
        self._context = context
        self._on_change = on_change
        polled = watch.polls(settings.root, settings.watch)
        self._scan_s = settings.scan_s or (SCAN_POLLED_S if polled else SCAN_S)
        settle_s = SETTLE_POLLED_S if polled else SETTLE_S
        settle_s = settle_s if settings.settle_s is None else settings.settle_s
        self._tracker = StabilityTracker(settle_s, settings.incomplete_s)
        self._claims = Claims(self.root)
        self._report = report.Report(self.root)
        self._status = report.Status()
        self._in_work: set[str] = set()
        self._newest = ""
        self._held_until = 0.0
        self._standing = False
        self._wake, self._changed = asyncio.Event(), asyncio.Event()
        self._watch = None if polled else watch.Watch(self.root.inbox, self._wake.set, context.log)
        # Threads of its own: a share that hangs holds up nobody else.
        self._threads = ThreadPoolExecutor(TOGETHER, f"hotfolder-{name}")
        self._decoding = asyncio.Semaphore(1)  # of 40 megapixels each takes 160 MB and more
        self._owed: asyncio.Queue[Delivery] = asyncio.Queue()
        self._away = self._blocked = ""

    @property
    def trouble(self) -> str:
        """What keeps this folder from working; empty if nothing does."""
        return self._away or self._blocked

    async def run(self) -> None:
        """Work until cancelled."""
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._look_on(), name=f"looks at {self.name}")
                group.create_task(self._deliver_on(), name=f"delivers to {self.name}")
                group.create_task(self._report_on(), name=f"reports in {self.name}")
        finally:
            if self._watch is not None:
                self._watch.disarm()
            self._threads.shutdown(wait=False, cancel_futures=True)

    def owe(self, delivery: Delivery) -> None:
        """An ended job of this folder."""
        self._owed.put_nowait(delivery)

    def _in_thread(self, work: Callable[..., T], *args: Any) -> asyncio.Future[T]:
        return asyncio.get_running_loop().run_in_executor(self._threads, work, *args)

    # looking

    async def _look_on(self) -> None:
        while True:
            began = time.monotonic()
            self._wake.clear()
            try:
                pause, took = await self._look()
                self._tell(away="")
            except OSError as error:
                self._standing, pause, took = False, self._scan_s, 0.0
                self._tell(away=self._trouble_of(error))
            self._changed.set()
            await asyncio.sleep(max(GAP_S, took * GAP_SHARE))
            with suppress(TimeoutError):
                async with asyncio.timeout(max(0.0, pause - (time.monotonic() - began))):
                    await self._wake.wait()

    async def _look(self) -> tuple[float, float]:
        """One look and what follows; seconds until the next one, and what the look took."""
        if not self._standing:
            await self._stand()
        if self._watch is not None:
            await self._in_thread(self._watch.arm)
        began = time.monotonic()
        found, planned = await self._in_thread(self._survey)
        now = time.monotonic()
        self._tracker.look({key: order.signature for key, order in planned.orders.items()}, now)
        await self._take(planned, now)
        self._note(found, planned)
        due = self._tracker.due()
        idle = now < self._held_until or not self._room()
        pause = self._scan_s if due is None or idle else min(self._scan_s, due - now)
        return pause, now - began

    async def _stand(self) -> None:
        """Make what is missing, and put in order what a dead daemon left."""
        memory = self._context.dir / "seen"
        memory.mkdir(exist_ok=True)
        await self._in_thread(self.root.prepare, memory)
        for job_id in await self._in_thread(self._claims.all):
            if job_id not in self._in_work:
                try:
                    await self._context.jobs.get(job_id)
                    self._in_work.add(job_id)
                except errors.Expired as error:
                    await self._in_thread(self._refuse, job_id, error)
                except errors.NotFound:
                    await self._in_thread(self._claims.give_back, job_id)
        await self._in_thread(self._report.read)
        await self._catch_up()
        self._standing = True

    def _survey(self) -> tuple[scan.Survey, Plan]:
        found = scan.survey(self.root.inbox)
        limit = self._context.info()["limits"]["max_images"]
        planned = plan.make(found.inbox, limit, require_ready=self._settings.require_ready)
        for path, name in planned.renames.items():
            file = self.root.inbox / path
            file.rename(file.with_name(name))
        return found, planned

    # taking

    async def _take(self, planned: Plan, now: float) -> None:
        """Take what has settled, in order, as long as there is room and a second's time."""
        settled = set(self._tracker.settled(now))
        ready = iter([order for key, order in planned.orders.items() if key in settled])
        while now >= self._held_until and time.monotonic() < now + PASS_S:
            orders = list(islice(ready, min(TOGETHER, self._room())))
            if not orders:
                return
            async with asyncio.TaskGroup() as group:
                for order in orders:
                    group.create_task(self._take_one(order))

    def _room(self) -> int:
        """Jobs this folder may still add: it fills half of the queue at most."""
        limit: int = self._context.info()["limits"]["queue"]
        return max(0, max(1, limit // 2) - len(self._in_work))

    async def _take_one(self, order: Order) -> None:
        """Make a job of an order, unless it is not whole, in use, or says not what to do."""
        try:
            fields, problem = await self._in_thread(self._read, order)
            if problem is None and not self._says_what(fields):
                self._tracker.park(order.key)
                return
            state = whole.State.WHOLE
            for picture in order.pictures if problem is None else ():
                async with self._decoding:
                    file = self.root.inbox / picture.path
                    state, problem = await self._in_thread(whole.look, file)
                if state is not whole.State.WHOLE:
                    break
        except OSError:  # gone, replaced or not to be read: the next look tells
            self._tracker.postpone(order.key, time.monotonic())
            return
        now = time.monotonic()
        if state is whole.State.IN_USE:
            self._tracker.postpone(order.key, now)
        elif problem is None or self._tracker.incomplete(order.key, now):
            await self._claim(order, fields, problem)

    def _read(self, order: Order) -> tuple[wire.Fields, errors.VellumError | None]:
        """What an order's texts say, over what the settings say; blocking."""
        fields: wire.Fields = {
            key: value
            for key in ("preset", "prompt", "priority")
            if (value := getattr(self._settings, key))
        }
        presets = self._context.info()["presets"]
        try:
            for entry in (*order.read, *order.texts):
                if entry.name == names.READY:
                    continue
                with (self.root.inbox / entry.path).open("rb") as file:
                    data = file.read(wire.TEXT_MAX + 1)
                fields = wire.layer(fields, wire.read_text(entry.name, data), presets)
        except errors.VellumError as error:
            return fields, error
        return fields, None

    def _says_what(self, fields: wire.Fields) -> bool:
        info = self._context.info()
        return wire.has_prompt(fields, info["presets"], info["default_preset"])

    async def _claim(
        self, order: Order, fields: wire.Fields, problem: errors.VellumError | None
    ) -> None:
        """Take an order's files, and accept it or say why not."""
        job_id = new_job_id()
        self._in_work.add(job_id)
        try:
            taken = await self._in_thread(self._claims.take, order, job_id)
        except Changed:
            self._in_work.discard(job_id)
            self._tracker.postpone(order.key, time.monotonic())
            return
        self._tracker.forget(order.key)
        try:
            await self._accept(order, job_id, taken, fields, problem)
        except OSError as error:
            self._in_work.discard(job_id)
            self._standing = False  # the next look puts the claim back
            self._tell(blocked=self._trouble_of(error))

    async def _accept(
        self,
        order: Order,
        job_id: str,
        taken: list[Path],
        fields: wire.Fields,
        problem: errors.VellumError | None,
    ) -> None:
        """Make a job of a claim; move it to failed, or back if only its time has not come."""
        try:
            if problem is not None:
                raise problem
            await self._submit(order, job_id, taken, fields)
        except errors.VellumError as error:
            if error.retryable:
                await self._in_thread(self._claims.give_back, job_id)
                self._held_until = time.monotonic() + HOLD_S
                self._status.trouble = HELD.get(error.code, "")
            else:
                await self._in_thread(self._refuse, job_id, error)
            self._in_work.discard(job_id)

    async def _submit(
        self, order: Order, job_id: str, taken: list[Path], fields: wire.Fields
    ) -> None:
        images = [
            await self._context.stage(file, entry.name)
            for file, entry in zip(taken, order.pictures, strict=True)
        ]
        presets = self._context.info()["presets"]
        request = wire.request(fields, images, presets, folder=self.name, batch=order.batch)
        skips = self._settings.duplicates == "skip"
        key = f"{self.name} {request.digest()}" if skips else None
        reply: list[JsonValue] = [self.name, order.kind]
        job = await self._context.jobs.submit(request, key=key, job_id=job_id, reply=reply)
        if job.id != job_id and job.status in (JobStatus.FAILED, JobStatus.CANCELLED):
            job = await self._context.jobs.submit(request, job_id=job_id, reply=reply)
        if job.id == job_id:
            self._newest = job_id
        else:
            await self._in_thread(self._finish, job_id)
            self._in_work.discard(job_id)

    def _finish(self, job_id: str) -> None:
        boxes.finish(self.root, self._claims, job_id, keep=self._settings.done == "keep")

    def _refuse(self, job_id: str, error: errors.VellumError) -> None:
        file = boxes.refuse(self.root, self._claims, job_id, wire.sentence(error))
        self._report.add_refused(job_id, file, error.message)

    # delivering

    async def _deliver_on(self) -> None:
        while True:
            await self._deliver(await self._owed.get())

    async def _deliver(self, delivery: Delivery) -> None:
        job = delivery.job
        if not self._standing or not await self._in_thread(self.root.there):
            await delivery.retry(RETRY_S if self._away else 0.5)
            return
        try:
            await self._put_back(job, delivery.reply[1])
            self._tell(blocked="")
        except OSError as error:
            self._tell(blocked=self._trouble_of(error))
            await delivery.retry(RETRY_S)
        else:
            await delivery.delivered()
            self._in_work.discard(job.id)
            self._wake.set()
        self._changed.set()

    async def _put_back(self, job: Job, kind: plan.Kind) -> None:
        """Results to the outbox and originals to done, or both halves of a failure."""
        keep = self._settings.done == "keep"
        try:
            found = [await self._context.jobs.result(job.id, r.n) for r in job.results]
            if job.status is not JobStatus.DONE:
                await self._context.jobs.result(job.id)  # raises why there is none
        except errors.VellumError as error:
            sentence = wire.sentence(error, job.id)
            file = await self._in_thread(boxes.refuse, self.root, self._claims, job.id, sentence)
            placed: list[str] = []
        else:
            file, placed = await self._in_thread(
                lambda: boxes.deliver(self.root, self._claims, job.id, kind, found, keep=keep)
            )
        self._report.add(job, file or _name(job), placed)

    # reporting

    def _trouble_of(self, error: OSError) -> str:
        """What stands in the way, as people can mend it; the log has the rest."""
        self._context.log.info("folder %s: %s", self.name, error)
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return FULL
        return CLOSED if self.root.inbox.is_dir() else AWAY

    def _tell(self, away: str | None = None, blocked: str | None = None) -> None:
        before = self.trouble
        self._away = self._away if away is None else away
        self._blocked = self._blocked if blocked is None else blocked
        if self.trouble != before:
            self._on_change()

    def _note(self, found: scan.Survey, planned: Plan) -> None:
        """What STATUS.txt will say of this look."""
        waiting = {key: NO_PROMPT for key in self._tracker.parked() if key in planned.orders}
        held = time.monotonic() < self._held_until
        self._status = report.Status(
            arriving=len(planned.orders) - len(waiting),
            waiting={**waiting, **dict.fromkeys(planned.unready, NOT_READY)},
            refused=found.refused,
            others=sum(folder.others for folder in found.inbox.walk()),
            trouble=self._status.trouble if held else "",
        )

    async def _report_on(self) -> None:
        last = ""
        while True:
            await self._changed.wait()
            self._changed.clear()
            if self._standing:
                with suppress(OSError):  # it tells how things are; things go on without
                    last = await self._write(last)
            await asyncio.sleep(WRITE_S)

    async def _write(self, last: str) -> str:
        """Write both files where they have changed; the status as written."""
        if not await self._in_thread(self.root.there):
            return last
        await self._in_thread(self._report.write)
        status = self._status
        status.in_work, status.ready_at = len(self._in_work), await self._ready_at()
        failed = await self._in_thread(report.failures, self.root.failed)
        trouble = " ".join(filter(None, [status.trouble, self._blocked]))
        text = status.text(self._report.done, failed, trouble)
        if text != last:
            await self._in_thread(report.write_status, self.root, text)
        return text

    async def _ready_at(self) -> datetime | None:
        """When the newest job will have ended, to the minute, if that is known."""
        if self._newest not in self._in_work:
            return None
        with suppress(errors.VellumError):
            job = await self._context.jobs.get(self._newest)
            if job.eta_s is not None:
                return datetime.now().astimezone() + timedelta(seconds=job.eta_s)
        return None

    async def _catch_up(self) -> None:
        """Give ended jobs their line in REPORT.csv that a kill has kept from it."""
        wanted, cursor = JobFilter(source=self._context.name, client_id=self.name), None
        while True:
            page = await self._context.jobs.list(wanted, cursor)
            missing = [job for job in page.jobs if not self._report.knows(job.id)]
            for job in missing:
                if job.status.terminal and job.id not in self._in_work:
                    self._report.add(job, _name(job), [])
            cursor = page.next
            if cursor is None or not missing:
                return


def _name(job: Job) -> str:
    """The name of a job's first picture, while it is kept."""
    images: Iterable[Any] = job.request.images if job.request else ()
    return next((image.name for image in images), "")
