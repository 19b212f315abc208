"""The way in: look at the inbox, and have what has settled taken, as long as there is room."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from itertools import islice

from vellumd import errors
from vellumd_hotfolder import names, plan, report, scan, watch
from vellumd_hotfolder.plan import Plan
from vellumd_hotfolder.reporter import Reporter
from vellumd_hotfolder.settle import StabilityTracker
from vellumd_hotfolder.site import Site
from vellumd_hotfolder.taker import Taker

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
NO_PROMPT = "waiting for a prompt; write NAME.txt beside it, or prompt.txt into the inbox"
NOT_READY = f"waiting for the file {names.READY}"


class Intake:
    """Looks at one inbox, now and whenever something changes there."""

    def __init__(self, site: Site, reporter: Reporter) -> None:
        settings = site.settings
        self._site = site
        self._reporter = reporter
        polled = watch.polls(site.root.path, settings.watch)
        self._scan_s = settings.scan_s or (SCAN_POLLED_S if polled else SCAN_S)
        settle_s = SETTLE_POLLED_S if polled else SETTLE_S
        settle_s = settle_s if settings.settle_s is None else settings.settle_s
        self._tracker = StabilityTracker(settle_s, settings.incomplete_s)
        self._taker = Taker(site, self._tracker)
        log = site.context.log
        self._watch = None if polled else watch.Watch(site.root.inbox, site.wake.set, log)

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
                if began >= self._taker.held_until:  # before that nothing is tried
                    self._taker.trouble = ""
                pause, took = await self._look()
            except OSError as error:
                self._site.standing, pause, took = False, self._scan_s, 0.0
                self._taker.trouble = await self._site.trouble_of(error)
            self._site.tell(closed_in=self._taker.trouble)
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
        idle = now < self._taker.held_until or not self._taker.room()
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
                    await self._site.in_thread(self._taker.refuse, job_id, error)
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
        while now >= self._taker.held_until and time.monotonic() < now + PASS_S:
            orders = list(islice(ready, min(TOGETHER, self._taker.room())))
            if not orders:
                return
            async with asyncio.TaskGroup() as group:
                for order in orders:
                    group.create_task(self._taker.take(order))

    def _note(self, found: scan.Survey, planned: Plan, now: float) -> None:
        """What STATUS.txt will say of this look."""
        waiting = {key: NO_PROMPT for key in self._tracker.parked() if key in planned.orders}
        stuck = {key: why for key, why in self._taker.stuck.items() if key in planned.orders}
        self._taker.stuck = stuck
        held = now < self._taker.held_until
        self._site.status = report.Status(
            arriving=len(planned.orders) - len(waiting) - len(stuck),
            waiting={**waiting, **dict.fromkeys(planned.unready, NOT_READY)},
            refused={**found.refused, **stuck},
            others=sum(folder.others for folder in found.inbox.walk()),
            trouble=self._site.status.trouble if held else "",
        )
