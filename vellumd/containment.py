"""Tasks of plugins: what would end the loop ends only them, and the plugin is named.

asyncio lets a SystemExit or KeyboardInterrupt of any task out of the loop, and with it the
whole daemon ends. A plugin's tasks are known by their context, which each task inherits.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

log = logging.getLogger(__name__)

_plugin: ContextVar[str] = ContextVar("plugin", default="")


class ExitedError(Exception):
    """A plugin's task wanted to end the process."""


@contextmanager
def plugin(name: str) -> Iterator[None]:
    """Tasks made in the block, and those that they make, are the plugin's."""
    token = _plugin.set(name)
    try:
        yield
    finally:
        _plugin.reset(token)


def make_task(loop: asyncio.AbstractEventLoop, work: Any, **options: Any) -> asyncio.Task[Any]:
    """A loop's task factory that contains the tasks of plugins."""
    name = _plugin.get()
    if not name:
        return asyncio.Task(work, loop=loop, **options)
    task = asyncio.Task(_contained(name, work), loop=loop, **options)
    task.add_done_callback(lambda _: work.close())  # one cancelled before it began
    return task


async def _contained(name: str, work: Coroutine[Any, Any, Any]) -> Any:
    try:
        return await work
    except (SystemExit, KeyboardInterrupt) as error:
        kind = type(error).__name__
        log.exception("a task of the plugin %s raised %s", name, kind)
        raise ExitedError(kind) from error
