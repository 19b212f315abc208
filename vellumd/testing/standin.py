"""A stand-in for the model, and a witness of all jobs: the plugin that the contract adds.

The engine inverts picture 1; the prompt `fail` makes it fail. While the file `hold` lies
in the folder, it waits after its first step. The transport writes what happens to jobs into
`history`, a line each, and stands still after the event that the file `freeze` names: there
a daemon can be killed with nothing left to chance.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import aclosing
from pathlib import Path

from PIL import Image, ImageOps
from pydantic import BaseModel

from vellumd.context import TransportContext
from vellumd.errors import Cancelled
from vellumd.hookspecs import EngineSpec, TransportSpec, hookimpl
from vellumd.models import ResolvedEdit
from vellumd.protocol import Capabilities, Init, Report

NAME = "standin"
PAUSE_S = 0.01
"""Seconds between two looks at `hold`."""


class StandInSettings(BaseModel):
    """Where the contract and this plugin meet."""

    folder: Path


class StandIn:
    """The engine."""

    def __init__(self, init: Init) -> None:
        self._folder = StandInSettings.model_validate(init.options).folder

    def load(self, report: Report) -> Capabilities:
        """Nothing to load."""
        return Capabilities(model=NAME, device="none", tiers=("standard",))

    def edit(
        self,
        edit: ResolvedEdit,
        images: list[Path],
        report: Report,
        cancelled: Callable[[], bool],
    ) -> Iterator[Image.Image]:
        """Yield picture 1 inverted, `n` times."""
        note(self._folder, images[0].parent.name, "executed")
        report.step(1, edit.n, 1, edit.steps)
        while (self._folder / "hold").exists():
            if cancelled():
                raise Cancelled("The job was cancelled.")
            report.beat("hold")
            time.sleep(PAUSE_S)
        if edit.prompt == "fail":
            raise RuntimeError("told to fail")
        with Image.open(images[0]) as picture:
            for _ in range(edit.n):
                yield ImageOps.invert(picture.convert("RGB"))

    def unload(self) -> None:
        """Nothing to let go of."""


def create(init: Init) -> StandIn:
    """The engine, made in its process."""
    return StandIn(init)


class Witness:
    """The transport: no door, only a pair of eyes."""

    def __init__(self, context: TransportContext) -> None:
        self._context = context

    async def run(self) -> None:
        """Write down every durable event; stand still, loop and all, after a named one."""
        folder: Path = self._context.settings.folder
        self._context.report(True, "looks on")
        seen = max((seq for *_, seq in history(folder)), default=0)
        async with aclosing(self._context.jobs.events(None, seen)) as events:
            async for event in events:
                if event.seq is not None:
                    note(folder, event.job_id, event.type, event.seq)
                    freeze(folder / "freeze", event.type)


def freeze(order: Path, event: str) -> None:
    """Stand still for ever if the file `order` names this event."""
    while order.exists() and order.read_text("utf-8") == event:
        time.sleep(PAUSE_S)


def note(folder: Path, job: str, what: str, seq: int = 0) -> None:
    """Append a line to the history; one write, so that a kill leaves it whole or out."""
    with (folder / "history").open("a", encoding="utf-8") as file:
        file.write(json.dumps([job, what, seq]) + "\n")


def history(folder: Path) -> list[tuple[str, str, int]]:
    """All that was noted: job id, what happened to it, the event's number."""
    file = folder / "history"
    lines = file.read_text("utf-8").splitlines() if file.exists() else []
    return [(job, what, seq) for job, what, seq in map(json.loads, lines)]


@hookimpl
def vellumd_engines() -> Iterable[EngineSpec]:
    """The engine."""
    return [EngineSpec(NAME, "vellumd.testing.standin:create", StandInSettings)]


@hookimpl
def vellumd_transports() -> Iterable[TransportSpec]:
    """The witness."""
    return [TransportSpec(NAME, StandInSettings, Witness)]
