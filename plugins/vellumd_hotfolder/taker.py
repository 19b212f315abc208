"""Making a job of an order: whole, claimed, staged, submitted; or put back, or to failed."""

from __future__ import annotations

import asyncio
import time
from functools import partial
from pathlib import Path

from pydantic import JsonValue

from vellumd import JobStatus, errors, new_job_id
from vellumd_hotfolder import boxes, names, watch, whole, wire
from vellumd_hotfolder.claims import Changed, Stuck
from vellumd_hotfolder.plan import Order
from vellumd_hotfolder.settle import StabilityTracker
from vellumd_hotfolder.site import Site

HOLD_S = 5.0
"""Seconds until files are offered again that found the queue or a disk full or closed."""
STUCK_S = 30.0
"""Seconds until a file is tried again that could not be read or moved."""

HELD = {
    "queue_full": "The queue is full: files stay in the inbox until there is room.",
    "storage_full": "vellumd's own disk is full: files stay in the inbox until there is room.",
}
UNREADABLE = "it cannot be read; give vellumd the right to"


class Taker:
    """Takes settled orders of one folder; `tracker` learns when each is to be offered again.

    Until `held_until` none is to be offered; `trouble` is what the disk has in the way, and
    `stuck` says of single orders why they cannot be taken now.
    """

    def __init__(self, site: Site, tracker: StabilityTracker) -> None:
        self._site = site
        self._tracker = tracker
        self._on_share = watch.on_network(site.root.path)
        self._decoding = asyncio.Semaphore(1)  # of 40 megapixels each takes 160 MB and more
        self.held_until = 0.0
        self.trouble = ""
        self.stuck: dict[str, str] = {}

    def room(self) -> int:
        """Jobs this folder may still add: it fills half of the queue at most."""
        limit: int = self._site.context.info()["limits"]["queue"]
        return max(0, max(1, limit // 2) - len(self._site.in_work))

    async def take(self, order: Order) -> None:
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
        self.stuck[key] = why
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
            self.stuck.pop(order.key, None)
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
            self.held_until = time.monotonic() + HOLD_S
            self.trouble = await self._site.trouble_of(error)

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
                self.held_until = time.monotonic() + HOLD_S
                self._site.status.trouble = HELD.get(error.code, "")
            else:
                await self._site.in_thread(self.refuse, job_id, error)
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

    def refuse(self, job_id: str, error: errors.VellumError) -> None:
        """Move a claim to failed and say why; blocking."""
        file = boxes.refuse(self._site.root, self._site.claims, job_id, wire.sentence(error))
        self._site.report.add_refused(job_id, file, error.message)
