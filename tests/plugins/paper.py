"""What tests of doors run on: a daemon in this process, with the torch-free engine."""

from __future__ import annotations

import asyncio
import importlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from vellumd import EngineSpec, TransportSpec
from vellumd.daemon import Daemon
from vellumd.plugins import Plugins
from vellumd.settings import Settings


def paper_daemon(
    folder: Path,
    doors: Iterable[TransportSpec],
    sections: dict[str, Any],
    *,
    engine: dict[str, Any] | None = None,
    core: dict[str, Any] | None = None,
) -> Daemon:
    """A daemon with these doors and their sections; `engine` is the engine's own section.

    `core` holds other sections, which count in place of the usual ones.
    """
    paper: EngineSpec = importlib.import_module("paper_engine").vellumd_engines()[0]
    settings = Settings.model_validate(
        {
            "engine": {"name": paper.name},
            "store": {"dir": folder / "data"},
            "daemon": {"stop_s": 0.5},
            "plugins": {**sections, paper.name: engine or {}},
            **(core or {}),
        }
    )
    return Daemon(settings, Plugins((), {d.name: d for d in doors}, {paper.name: paper}, ()))


async def until(happened: Callable[[], Any], seconds: float = 15) -> None:
    """Wait until something is so."""
    async with asyncio.timeout(seconds):
        while not happened():
            await asyncio.sleep(0.01)
