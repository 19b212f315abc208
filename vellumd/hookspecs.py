"""The three hooks of vellumd, and the records they return.

Hooks are synchronous and hand over data; no I/O, no torch. A plugin is a module
registered under the entry-point group `vellumd`; docs/plugins.md shows one.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import pluggy
from pydantic import BaseModel

from vellumd.models import Job, JobEvent

if TYPE_CHECKING:
    from vellumd.context import TransportContext

GROUP = "vellumd"
"""Entry-point group and pluggy project name."""

hookspec = pluggy.HookspecMarker(GROUP)
hookimpl = pluggy.HookimplMarker(GROUP)


class Transport(Protocol):
    """A door: brings requests in and carries results out."""

    async def run(self) -> None:
        """Work until cancelled; clean up within the daemon's stop time.

        Returning early or raising counts as a crash: it is logged, shown, and the
        transport is made and run again after a pause.
        """


@dataclass(frozen=True)
class Check:
    """One finding of doctor: `ok` is False for what must be mended."""

    ok: bool
    text: str


@dataclass(frozen=True)
class TransportSpec:
    """A transport on offer.

    `settings_model` validates the section `[plugins.<name>]`; `factory` is called in
    the daemon's loop each time the transport starts, so heavy imports belong there.
    `checks` are what `vellumd doctor` runs: async, given the validated settings, I/O
    allowed, never taking a job. `give_up_s`: seconds after a job's end for which its
    delivery is tried; then it is undeliverable, and the job ages like any other.
    """

    name: str
    settings_model: type[BaseModel]
    factory: Callable[[TransportContext], Transport]
    checks: tuple[Callable[[Any], Awaitable[Iterable[Check]]], ...] = ()
    give_up_s: float = 7 * 86_400.0


@dataclass(frozen=True)
class EngineSpec:
    """An engine on offer, chosen by `engine.name`.

    `factory` is an import string `package.module:name` that the engine process loads
    and calls with `protocol.Init`; the daemon never imports it. `settings_model`
    validates the section `[plugins.<name>]`, handed over as `Init.options`.
    """

    name: str
    factory: str
    settings_model: type[BaseModel] | None = None


@hookspec
def vellumd_transports() -> Iterable[TransportSpec]:  # type: ignore[empty-body]
    """Transports that this plugin brings.

    Called once in the daemon (and in doctor) before anything runs. An exception
    refuses the start.
    """


@hookspec
def vellumd_engines() -> Iterable[EngineSpec]:  # type: ignore[empty-body]
    """Engines that this plugin brings. Called once, before anything runs."""


@hookspec
def vellumd_job_event(job: Job, event: JobEvent) -> None:
    """Something durable happened to a job: queued, started, done, failed, cancelled.

    Called in the daemon's loop after the commit, so it must not block. An exception is
    logged with the plugin's name and does not touch the job.
    """
