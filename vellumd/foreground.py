"""The daemon as a process: serves until a signal, and has ended soon after it."""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any

from vellumd import errors, logs, platform, watchdog
from vellumd.daemon import Daemon
from vellumd.lag import LagAlarm
from vellumd.settings import Settings

log = logging.getLogger("vellumd")

LINGER_S = 20.0
"""Seconds beyond `daemon.stop_s` in which everything else has ended; then the process is."""


def run(settings: Settings, warnings: Iterable[str], on_open: Callable[[Daemon], None]) -> int:
    """Serve in the foreground until a signal; the exit status. Raises `ConfigError`.

    `on_open` is called once the doors are open.
    """
    logs.start(settings.log)
    for warning in warnings:
        log.warning("%s", warning)
    try:
        return asyncio.run(_run(settings, on_open))
    except SystemExit:  # of what is no task: a callback
        log.critical("a plugin ended the daemon", exc_info=True)
        return platform.STUCK


async def _run(settings: Settings, on_open: Callable[[Daemon], None]) -> int:
    daemon = Daemon(settings)
    loop = asyncio.get_running_loop()

    def stop() -> None:
        end_within(settings.daemon.stop_s + LINGER_S, daemon.lag)
        with suppress(RuntimeError):  # the loop has ended already
            loop.call_soon_threadsafe(daemon.stop)

    platform.on_stop(stop)
    try:
        async with daemon.running():
            if not daemon.stopping:
                on_open(daemon)
                async with watchdog.serving(daemon.parts()):
                    await daemon.stopped()
    except* errors.VellumError as group:
        raise first(group) from None
    finally:
        if daemon.transports.stuck:  # asyncio would wait for them
            stuck = ", ".join(daemon.transports.stuck)
            log.error("ended without waiting for %s", stuck, exc_info=sys.exception())
            platform.end_now(platform.STUCK)
    return 0


def end_within(seconds: float, lag: LagAlarm) -> None:
    """End the process in `seconds` if it has not by then, saying what is in the way."""

    def end() -> None:
        where = lag.where() or f"{threading.active_count() - 1} threads"
        log.error("not ended %.0f s after being told to, because of %s", seconds, where)
        platform.end_now(platform.STUCK)

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()


def first(group: BaseExceptionGroup[Any]) -> BaseException:
    """The first plain exception of nested groups."""
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
