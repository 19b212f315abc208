"""The way in: look at the inbox, take what has settled and is whole, make jobs of it."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from functools import partial
from itertools import islice
from pathlib import Path

from pydantic import JsonValue

from vellumd import JobStatus, errors, new_job_id
from vellumd_hotfolder import boxes, names, plan, report, scan, watch, whole, wire
from vellumd_hotfolder.claims import Changed, Stuck
from vellumd_hotfolder.plan import Order, Plan
from vellumd_hotfolder.reporter import Reporter
from vellumd_hotfolder.settle import StabilityTracker
from vellumd_hotfolder.site import Site

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
"""Seconds until files are offered again that found the queue or a disk full or closed."""

STUCK_S = 30.0
"""Seconds until a file is tried again that could not be read or moved."""

HELD = {
    "queue_full": "The queue is full: files stay in the inbox until there is room.",
    "storage_full": "vellumd's own disk is full: files stay in the inbox until there is room.",
}
NO_PROMPT = "waiting for a prompt; write NAME.txt beside it, or prompt.txt into the inbox"
NOT_READY = f"waiting for the file {names.READY}"
UNREADABLE = "it cannot be read; give vellumd the right to"


class Intake:
    """Turns what lies in one inbox into jobs."""

    def __init__(self, site: Site, reporter: Reporter) -> None:
        settings = site.settings
        self._site = site
        self._reporter = reporter
        polled = watch.polls(site.root.path, settings.watch)
        self._scan_s = settings.scan_s or (SCAN_POLLED_S if polled else SCAN_S)
        settle_s = SETTLE_POLLED_S if polled else SETTLE_S
        settle_s = settle_s if settings.settle_s is None else settings.settle_s
        self._tracker = StabilityTracker(settle_s, settings.incomplete_s)
        self._held_until = 0.0
        log = site.context.log
        self._watch = None if polled else watch.Watch(site.root.inbox, site.wake.set, log)
        self._on_share = watch.on_network(site.root.path)
        self._trouble = ""
        self._stuck: dict[str, str] = {}
        self._decoding = asyncio.Semaphore(1)  # of 40 megapixels each takes 160 MB and more

    def close(self) -> None:
        """Be told of no more changes."""
        if self._watch is not None:
            self._watch.disarm()

    async def run(self) -> None:
        """Look, and take what has settled, until cancelled."""
        while True:
            began = time.monotonic()
            self._site.wake.clear()
            try:
                if began >= self._held_until:  # before that nothing is tried
                    self._trouble = ""
                pause, took = await self._look()
            except OSError as error:
                self._site.standing, pause, took = False, self._scan_s, 0.0
                self._trouble = await self._site.trouble_of(error)
            self._site.tell(closed_in=self._trouble)
            self._site.changed.set()
            await asyncio.sleep(max(GAP_S, took * GAP_SHARE))
            with suppress(TimeoutError):
                async with asyncio.timeout(max(0.0, pause - (time.monotonic() - began))):
                    await self._site.wake.wait()

    async def _look(self) -> tuple[float, float]:
        """One look and what follows; seconds until the next one, and what the look took."""
        if not self._site.standing:
            await self._stand()
        if self._watch is not None:
            await self._site.in_thread(self._watch.arm)
        began = time.monotonic()
        found, planned = await self._site.in_thread(self._survey)
        now = time.monotonic()
        self._tracker.look({key: order.signature for key, order in planned.orders.items()}, now)
        await self._take(planned, now)
        self._note(found, planned, now)
        due = self._tracker.due()
        idle = now < self._held_until or not self._room()
        pause = self._scan_s if due is None or idle else min(self._scan_s, due - now)
        return pause, now - began

    async def _stand(self) -> None:
        """Make what is missing, and put in order what a dead daemon left."""
        memory = self._site.context.dir / "seen"
        memory.mkdir(exist_ok=True)
        await self._site.in_thread(self._site.root.prepare, memory)
        known = set(self._site.in_work)  # before the look: some are delivered meanwhile
        for job_id in await self._site.in_thread(self._site.claims.all):
            if job_id not in known:
                try:
                    await self._site.context.jobs.get(job_id)
                    self._site.in_work.add(job_id)
                except errors.Expired as error:
                    await self._site.in_thread(self._refuse, job_id, error)
                except errors.NotFound:
                    await self._site.in_thread(self._site.claims.give_back, job_id)
        with suppress(OSError):  # a spreadsheet may hold it: it is read before it is written
            await self._site.in_thread(self._site.report.read)
        await self._reporter.catch_up()
        self._site.standing = True

    def _survey(self) -> tuple[scan.Survey, Plan]:
        if not self._site.root.there():
            raise FileNotFoundError("inbox")
        found = scan.survey(self._site.root.inbox)
        limit = self._site.context.info()["limits"]["max_images"]
        planned = plan.make(found.inbox, limit, require_ready=self._site.settings.require_ready)
        for path, name in planned.renames.items():
            file = self._site.root.inbox / path
            with suppress(OSError):  # then it is still called so at the next look
                file.rename(file.with_name(name))
        return found, planned

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
        limit: int = self._site.context.info()["limits"]["queue"]
        return max(0, max(1, limit // 2) - len(self._site.in_work))

    async def _take_one(self, order: Order) -> None:
        """Make a job of an order, unless it is not whole, in use, or says not what to do."""
        try:
            fields, problem = await self._site.in_thread(self._read, order)
            if problem is None and not self._says_what(fields):
                self._tracker.park(order.key)
                return
            state = whole.State.WHOLE
            for picture in order.pictures if problem is None else ():
                async with self._decoding:
                    file = self._site.root.inbox / picture.path
                    look = partial(whole.look, file, on_share=self._on_share)
                    state, problem = await self._site.in_thread(look)
                if state is not whole.State.WHOLE:
                    break
        except FileNotFoundError:  # or replaced: the next look tells
            self._tracker.postpone(order.key, time.monotonic())
            return
        except OSError:
            self._stick(order.key, UNREADABLE)
            return
        now = time.monotonic()
        if state is whole.State.IN_USE:
            self._tracker.postpone(order.key, now)
        elif problem is None or self._tracker.incomplete(order.key, now):
            await self._claim(order, fields, problem)

    def _stick(self, key: str, why: str) -> None:
        """Leave an order alone for a while, and say why."""
        self._stuck[key] = why
        self._tracker.postpone(key, time.monotonic(), STUCK_S)

    def _read(self, order: Order) -> tuple[wire.Fields, errors.VellumError | None]:
        """What an order's texts say, over what the settings say; blocking."""
        fields: wire.Fields = {
            key: value
            for key in ("preset", "prompt", "priority")
            if (value := getattr(self._site.settings, key))
        }
        presets = self._site.context.info()["presets"]
        try:
            for entry in (*order.read, *order.texts):
                if entry.name == names.READY:
                    continue
                with (self._site.root.inbox / entry.path).open("rb") as file:
                    data = file.read(wire.TEXT_MAX + 1)
                fields = wire.layer(fields, wire.read_text(entry.name, data), presets)
        except errors.VellumError as error:
            return fields, error
        return fields, None

    def _says_what(self, fields: wire.Fields) -> bool:
        """Whether there is a prompt; a preset that does not exist is told as such."""
        info = self._site.context.info()
        preset = fields.get("preset", info["default_preset"])
        known = isinstance(preset, str) and preset in info["presets"]
        return not known or wire.has_prompt({**fields, "preset": preset}, info["presets"])

    async def _claim(
        self, order: Order, fields: wire.Fields, problem: errors.VellumError | None
    ) -> None:
        """Take an order's files, and accept it or say why not."""
        job_id = new_job_id()
        self._site.in_work.add(job_id)
        try:
            taken = await self._site.in_thread(self._site.claims.take, order, job_id)
            self._tracker.forget(order.key)
            self._stuck.pop(order.key, None)
            await self._accept(order, job_id, taken, fields, problem)
        except Changed:
            self._site.in_work.discard(job_id)
            self._tracker.postpone(order.key, time.monotonic())
        except Stuck as stuck:
            self._site.in_work.discard(job_id)
            self._stick(order.key, str(stuck))
        except OSError as error:
            self._site.in_work.discard(job_id)
            self._site.standing = False  # the next look puts the claim back
            self._held_until = time.monotonic() + HOLD_S
            self._trouble = await self._site.trouble_of(error)

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
                await self._site.in_thread(self._site.claims.give_back, job_id)
                self._held_until = time.monotonic() + HOLD_S
                self._site.status.trouble = HELD.get(error.code, "")
            else:
                await self._site.in_thread(self._refuse, job_id, error)
            self._site.in_work.discard(job_id)

    async def _submit(
        self, order: Order, job_id: str, taken: list[Path], fields: wire.Fields
    ) -> None:
        images = [
            await self._site.context.stage(file, entry.name)
            for file, entry in zip(taken, order.pictures, strict=True)
        ]
        presets = self._site.context.info()["presets"]
        request = wire.request(fields, images, presets, folder=self._site.name, batch=order.batch)
        skips = self._site.settings.duplicates == "skip"
        key = f"{self._site.name} {request.digest()}" if skips else None
        reply: list[JsonValue] = [self._site.name, order.kind]
        job = await self._site.context.jobs.submit(request, key=key, job_id=job_id, reply=reply)
        if job.id != job_id and job.status in (JobStatus.FAILED, JobStatus.CANCELLED):
            job = await self._site.context.jobs.submit(request, job_id=job_id, reply=reply)
        if job.id == job_id:
            self._site.newest = job_id
        else:
            await self._site.in_thread(self._finish, job_id)
            self._site.in_work.discard(job_id)

    def _finish(self, job_id: str) -> None:
        boxes.finish(
            self._site.root, self._site.claims, job_id, keep=self._site.settings.done == "keep"
        )

    def _refuse(self, job_id: str, error: errors.VellumError) -> None:
        file = boxes.refuse(self._site.root, self._site.claims, job_id, wire.sentence(error))
        self._site.report.add_refused(job_id, file, error.message)

    def _note(self, found: scan.Survey, planned: Plan, now: float) -> None:
        """What STATUS.txt will say of this look."""
        waiting = {key: NO_PROMPT for key in self._tracker.parked() if key in planned.orders}
        self._stuck = {key: why for key, why in self._stuck.items() if key in planned.orders}
        held = now < self._held_until
        self._site.status = report.Status(
            arriving=len(planned.orders) - len(waiting) - len(self._stuck),
            waiting={**waiting, **dict.fromkeys(planned.unready, NOT_READY)},
            refused={**found.refused, **self._stuck},
            others=sum(folder.others for folder in found.inbox.walk()),
            trouble=self._site.status.trouble if held else "",
        )
