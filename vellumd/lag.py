"""The lag alarm: a thread beside the loop that names what blocks it, while it does."""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from types import FrameType
from typing import Any

log = logging.getLogger(__name__)

LOOK_S = 0.5
"""Seconds between two looks."""
LAG_S = 0.5
"""Seconds without a turn of the loop that raise the alarm; every door waits that long."""
WAITING = {("selectors", "select"), ("asyncio.windows_events", "_poll")}
"""Where a loop sits that has nothing to do: it is not blocked."""


@dataclass(frozen=True)
class Lag:
    """What was seen so far: `alarms`, the longest of them in seconds, whom the last named."""

    alarms: int = 0
    worst_s: float = 0.0
    last: str = ""

    def public(self) -> dict[str, Any]:
        """As JSON values."""
        return {"alarms": self.alarms, "worst_s": round(self.worst_s, 1), "last": self.last}


class LagAlarm:
    """Watches one loop. `owners` names the plugin of a package, e.g. `vellumd_fax` → `fax`.

    A C function that keeps the interpreter lock stops this thread too: it is seen when it
    ends, and then what runs next is named.
    """

    def __init__(self, owners: Mapping[str, str]) -> None:
        self._owners = owners
        self._thread_id = 0
        self._over = threading.Event()
        self.seen = Lag()

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Watch the running loop while the block runs."""
        loop, self._thread_id = asyncio.get_running_loop(), threading.get_ident()
        thread = threading.Thread(target=self._watch, args=(loop,), name="lag alarm", daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._over.set()

    def _watch(self, loop: asyncio.AbstractEventLoop) -> None:
        while not self._over.wait(LOOK_S):
            turned = threading.Event()
            asked = time.monotonic()
            try:
                loop.call_soon_threadsafe(turned.set)
            except RuntimeError:  # the loop is closed
                return
            if not turned.wait(LAG_S) and (where := self.where()):
                log.warning("the loop is blocked by %s", where)
                while not turned.wait(LAG_S) and not self._over.is_set():
                    pass
                self._note(where, time.monotonic() - asked)

    def _note(self, where: str, seconds: float) -> None:
        log.warning("the loop was blocked for %.1f s by %s", seconds, where)
        worst_s = max(self.seen.worst_s, seconds)
        self.seen = replace(self.seen, alarms=self.seen.alarms + 1, worst_s=worst_s, last=where)

    def where(self) -> str:
        """What the loop's thread does right now, and for which plugin; empty if nothing."""
        frame = sys._current_frames().get(self._thread_id)
        if frame is None or (module_of(frame), frame.f_code.co_name) in WAITING:
            return ""
        innermost = place(frame)
        while frame is not None:
            if plugin := self._owner(frame):
                return f"the plugin {plugin} ({place(frame)})"
            frame = frame.f_back
        return f"the daemon itself ({innermost})"

    def _owner(self, frame: FrameType) -> str | None:
        module = module_of(frame)
        while module and module not in self._owners:
            module = module.rpartition(".")[0]
        return self._owners.get(module)


def module_of(frame: FrameType) -> str:
    """Dotted name of the module that a frame's code belongs to."""
    return str(frame.f_globals.get("__name__", ""))


def place(frame: FrameType) -> str:
    """Module, line and function of a frame."""
    return f"{module_of(frame)}, line {frame.f_lineno}, in {frame.f_code.co_name}"
