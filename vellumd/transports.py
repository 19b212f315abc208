"""The doors: kept open, contained when they crash, shown as they are, closed within bounds."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from vellumd import containment, errors
from vellumd.hookspecs import Transport, TransportSpec

log = logging.getLogger(__name__)

STARTING = "starting"
RESTART_S = (1.0, 2.0, 5.0, 15.0, 60.0)
"""Seconds before a crashed transport is made again, by crashes in a row."""
STEADY_S = 300.0
"""Seconds after which a running transport's earlier crashes are forgotten."""
START_S = 10.0
"""Seconds a transport gets to say how it is; a silent one then holds up the start no longer."""
CLEANUP_S = 5.0
"""Seconds a transport gets to close; then it is asked again, and then it is left."""


@dataclass
class Door:
    """How a transport is: what it said last, where it can be reached, how often it crashed."""

    ok: bool = True
    text: str = STARTING
    urls: list[str] = field(default_factory=list)
    crashes: int = 0


class Transports:
    """The transports of one daemon; `open` makes one from its spec.

    `started` is set once each has said how it is. `key_files` are those of announced
    addresses. `stuck` names those that `run` had to leave behind, still running, when it
    ended.
    """

    def __init__(
        self, specs: Iterable[TransportSpec], open: Callable[[TransportSpec], Transport]
    ) -> None:
        self._specs = list(specs)
        self._open = open
        self.doors = {spec.name: Door() for spec in self._specs}
        self.key_files: dict[str, Path] = {}
        self.started = asyncio.Event()
        self.stuck: list[str] = []

    @property
    def urls(self) -> list[str]:
        """Addresses that the transports announced."""
        return [url for door in self.doors.values() for url in door.urls]

    def public(self) -> dict[str, dict[str, Any]]:
        """The doors as JSON values, by name."""
        return {name: asdict(door) for name, door in self.doors.items()}

    async def run(self) -> None:
        """Keep every transport open until cancelled, then close them.

        Raises `ConfigError` if one refuses to be opened before all are.
        """
        loop = asyncio.get_running_loop()
        # A task group would wait for a transport that never ends: these can be left.
        running = [
            loop.create_task(self._keep_open(spec), name=f"transport {spec.name}")
            for spec in self._specs
        ]
        hurry = loop.call_later(START_S, self._name_the_silent)
        self._note_started()
        try:
            for ended in asyncio.as_completed(running):
                await ended
        finally:
            hurry.cancel()
            self.stuck = await close(running)

    async def _keep_open(self, spec: TransportSpec) -> None:
        """Run a transport; make it again after a crash, which harms nobody else."""
        door = self.doors[spec.name]
        loop = asyncio.get_running_loop()
        in_a_row = 0
        while True:
            began = loop.time()
            problem = await self._run_once(spec)
            if is_cancelled():
                return
            door.crashes += 1
            in_a_row = 1 if loop.time() - began > STEADY_S else in_a_row + 1
            pause = RESTART_S[min(in_a_row, len(RESTART_S)) - 1]
            self.report(spec.name, False, f"{problem}; opened again in {pause:.0f} s")
            await asyncio.sleep(pause)

    async def _run_once(self, spec: TransportSpec) -> str:
        """Run a transport until it ends; how it did."""
        self.doors[spec.name].urls.clear()
        loop = asyncio.get_running_loop()
        with containment.plugin(spec.name):
            # A task of its own: before Python 3.13 a task group that failed leaves its task
            # behind as one that somebody cancelled.
            running = loop.create_task(self._live(spec), name=spec.name)
        try:
            await running
        except asyncio.CancelledError:
            if is_cancelled():
                raise
            return "it cancelled itself"
        except GeneratorExit:
            raise
        except BaseException as error:  # extension modules raise such
            if isinstance(error, errors.ConfigError) and not self.started.is_set():
                raise
            log.exception("transport %s crashed", spec.name)
            return f"it crashed ({type(error).__name__})"
        return "it ended by itself"

    async def _live(self, spec: TransportSpec) -> None:
        await self._open(spec).run()

    def report(self, name: str, ok: bool, text: str) -> None:
        """See `TransportContext.report`."""
        door = self.doors[name]
        if (ok, text) != (door.ok, door.text):
            log.log(logging.INFO if ok else logging.WARNING, "%s: %s", name, text)
        door.ok, door.text = ok, text
        self._note_started()

    def announce(self, name: str, url: str, key_file: Path | None) -> None:
        """See `TransportContext.announce`."""
        self.doors[name].urls.append(url)
        if key_file is not None:
            self.key_files[url] = key_file

    def _name_the_silent(self) -> None:
        for name, door in self.doors.items():
            if door.text == STARTING:
                self.report(name, False, "it has not said how it is")

    def _note_started(self) -> None:
        if all(door.text != STARTING for door in self.doors.values()):
            self.started.set()


def is_cancelled() -> bool:
    """Whether somebody asked the running task to end."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


async def close(running: Iterable[asyncio.Task[None]]) -> list[str]:
    """Cancel the transports, twice where once is not enough; names of what did not end."""
    left = {task for task in running if not task.done()}
    for _ in range(2):
        for task in left:
            task.cancel()
        if left:
            _, left = await asyncio.wait(left, timeout=CLEANUP_S)
        for task in left:
            log.error("%s did not end within %.0f s of being told to", task.get_name(), CLEANUP_S)
    return sorted(task.get_name() for task in left)
