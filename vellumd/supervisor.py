"""The life of the engine process: started, watched, fed one edit at a time, replaced.

The child gives a sign of life with every bit of work, and answers a probe while idle.
No sign for `stall_s` means that it hangs: it is killed, as one that died is replaced.
Only its end gives the card's memory back, so an engine is unloaded by ending its process.
"""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, Literal

from vellumd import errors
from vellumd.child import LAST_WORDS_S, Child
from vellumd.circuit import Circuit
from vellumd.models import Notice, ResolvedEdit
from vellumd.protocol import (
    WARM_UP,
    Beat,
    Cancel,
    Capabilities,
    Done,
    Edit,
    Failed,
    Fatal,
    FromEngine,
    Init,
    Preview,
    PreviewImage,
    Probe,
    Ready,
    Step,
    ToEngine,
    Warm,
)

log = logging.getLogger(__name__)

COMMAND = (sys.executable, "-m", "vellumd.engine")
LOAD_FACTOR = 5
"""Loading and compiling may be silent for this many times `stall_s`."""
SUSPECT = ("out_of_memory", "bad_output")
"""Failures that can be the process's own: fragmented memory, a damaged weight."""
SUSPECT_MOST = 2
"""Such failures in a row after which a new process takes over."""
HOPELESS = ("model_missing", "model_invalid", "recipe_unsupported")
"""Reasons not to load that another start alone does not mend."""

Answer = Step | PreviewImage | Done | Failed


class EditFailedError(Exception):
    """The child is well, and the edit ended without result: `error` says why.

    `unstored`: only because there is no room for it.
    """

    def __init__(
        self, error: errors.VellumError, warnings: tuple[Notice, ...], unstored: bool
    ) -> None:
        super().__init__(error.message)
        self.error = error
        self.warnings = warnings
        self.unstored = unstored


class EngineDiedError(Exception):
    """The child ended or was killed before it answered."""


class EngineAbsentError(EngineDiedError):
    """The child was gone before it got the edit, so the edit is not what ended it."""


@dataclass(frozen=True)
class EngineState:
    """How the engine is. `phase`, `done` and `of` are its last sign of life.

    `warming`: it edits, but its warm-up is not over, so the first edit takes longer;
    `warm_up_s`: seconds it took, none before its end.
    `failed`: it cannot load, or died too often, and is tried again now and then;
    `unloaded`: on purpose, and loaded again by the next job.
    """

    state: Literal["loading", "ready", "restarting", "failed", "unloaded"] = "loading"
    reason: str = "The engine is starting."
    phase: str = "start"
    done: int = 0
    of: int = 0
    restarts: int = 0
    capabilities: Capabilities | None = None
    warming: bool = False
    warm_up_s: float | None = None

    @property
    def loaded(self) -> bool:
        """Whether the engine is in memory and well."""
        return self.state == "ready"

    @property
    def ready(self) -> bool:
        """Whether a job that comes now is edited: nothing is broken."""
        return self.state in ("ready", "unloaded")


class Supervisor:
    """One engine process after another. `run` lives as long as the daemon."""

    def __init__(
        self,
        init: Init,
        stall_s: float,
        *,
        idle_unload_s: float = 0,
        command: tuple[str, ...] = COMMAND,
        on_state: Callable[[EngineState], None] = lambda state: None,
        circuit: Circuit | None = None,
    ) -> None:
        """`idle_unload_s`: seconds without an edit that unload the engine; 0 for never."""
        self._init = init
        self._stall_s = stall_s
        self._idle_unload_s = idle_unload_s
        self._command = command
        self._on_state = on_state
        self._circuit = circuit or Circuit()
        self._child: Child | None = None
        self._answers: asyncio.Queue[Answer | None] | None = None
        self._job = ""
        self._ready = asyncio.Event()
        self._dismissed = asyncio.Event()
        self._wanted = asyncio.Event()
        self._wanted.set()
        self._hurry = asyncio.Event()
        self._previews = False
        self._hopeless = False
        self._failed = asyncio.Event()
        self._fatal: errors.VellumError | None = None
        self._warms_up = True
        """No child died of it."""
        self._may_warm_up = True
        self._suspects = 0
        self._last_used = 0.0
        self._frames = 0
        self.state = EngineState()

    @property
    def process_id(self) -> int:
        """The child's process id; 0 before the first one."""
        return self._child.pid if self._child else 0

    @property
    def loaded(self) -> bool:
        """Whether an edit could start at once."""
        return self._ready.is_set()

    @property
    def editing(self) -> bool:
        """Whether the child has an edit to do."""
        return bool(self._job)

    @property
    def silent_s(self) -> float:
        """Seconds for which a child may be silent before it is replaced, at most."""
        return self._stall_s * LOAD_FACTOR

    def sign(self) -> int | None:
        """Another number after each sign of life of the child; None while there is none."""
        return None if self._child is None or self._child.ended else self._frames

    async def run(self) -> None:
        """Keep an engine alive, unless it was unloaded, until cancelled; then end it."""
        while True:
            if not self._wanted.is_set():
                if not self._circuit.open:  # a broken engine is not ready for being let alone
                    reason = "The engine is unloaded; a job loads it again."
                    self._set(state="unloaded", reason=reason, phase="idle")
                await self._wanted.wait()
            try:
                await self._live_once()
            except OSError:  # too many files or processes, or no memory
                log.exception("the engine process could not be started")
                self._set(state="failed", reason="The engine process could not be started.")
            if not self._dismissed.is_set():
                await self._recover()

    async def _recover(self) -> None:
        """Let some time pass after a death, so that a broken engine does not spin."""
        pause = self._circuit.died(self._hopeless)
        self._set(restarts=self.state.restarts + 1)
        if self._circuit.open and self.state.state != "failed":
            self._set(state="failed", reason="The engine died too often; the log says how.")
        if self._circuit.open:
            log.warning("the engine is tried again in %.0f s", pause)
        self._hurry.clear()
        with suppress(TimeoutError):
            async with asyncio.timeout(pause):
                await self._hurry.wait()

    def ready(self) -> Coroutine[Any, Any, object]:
        """Wait until an edit could start; an unloaded engine is loaded for it.

        Wanted from the call on, not from the first wait: an unload in between counts.
        """
        self._wanted.set()
        return self._ready.wait()

    async def failed(self) -> errors.VellumError:
        """Wait until no engine can be had for a while; the error that says why."""
        await self._failed.wait()
        return self._fatal or errors.EngineCrashed(self.state.reason)

    def load(self) -> None:
        """Start an unloaded engine; try a failed one again without waiting."""
        self._wanted.set()
        self._hurry.set()

    def unload(self) -> None:
        """End the child, after its edit if it has one. It stays away until it is wanted."""
        self._wanted.clear()
        self._hurry.set()
        if not self._job:
            self._dismiss()

    def _dismiss(self) -> None:
        """End the child, which is no death."""
        self._ready.clear()
        self._dismissed.set()

    async def edit(
        self, job_id: str, edit: ResolvedEdit
    ) -> AsyncGenerator[Step | PreviewImage | Done, None]:
        """Do an edit whose inputs lie in the spool; `Done` comes last. One at a time.

        Raises `EngineAbsentError` if it could not start, `EngineDiedError`, or
        `EditFailedError`. `cancel` counts from the first `anext` on.
        """
        answers: asyncio.Queue[Answer | None] = asyncio.Queue()
        self._answers, self._job = answers, job_id
        try:
            if not self._ready.is_set():
                raise EngineAbsentError
            self._send(Edit(job=job_id, edit=edit))
            while (answer := await answers.get()) is not None:
                if isinstance(answer, (Done, Failed)):
                    self._judge(answer)
                if isinstance(answer, Failed):
                    error = errors.from_code(answer.code, answer.message)
                    raise EditFailedError(error, answer.warnings, answer.unstored)
                yield answer
                if isinstance(answer, Done):
                    return
            raise EngineDiedError
        finally:
            self._answers, self._job = None, ""
            self._last_used = asyncio.get_running_loop().time()
            if not self._wanted.is_set():
                self._dismiss()

    def _judge(self, answer: Done | Failed) -> None:
        """What an answer says of the process that gave it."""
        self._circuit.worked()
        if isinstance(answer, Done):
            self._suspects = 0
        elif answer.code in SUSPECT:
            self._suspects += 1
            if self._suspects >= SUSPECT_MOST:
                log.warning("%d edits in a row failed as %s", self._suspects, answer.code)
                self._restart("Edits failed in a row; a new engine process starts.")

    def _restart(self, reason: str) -> None:
        """Have another process take over, which is no death."""
        self._set(state="restarting", reason=reason, restarts=self.state.restarts + 1)
        self._dismiss()

    def cancel(self, job_id: str) -> None:
        """Ask the child to stop this edit, if it runs."""
        self._send(Cancel(job=job_id))

    def show_previews(self, wanted: bool) -> None:
        """Have the child send previews, or not."""
        self._previews = wanted
        self._send(Preview(on=wanted))

    def kill(self) -> None:
        """End the child now; its edit raises `EngineDiedError`, and none takes over."""
        self._wanted.clear()
        self._dismiss()
        if self._child:
            self._child.kill()

    # one child

    async def _live_once(self) -> None:
        """Start a child, follow it until it ends or is dismissed, clean up behind it."""
        self._dismissed.clear()
        self._hopeless, self._suspects = False, 0
        self._set(phase="start", done=0, of=0)
        if self.state.state != "failed":
            self._set(state="loading", reason="The engine is loading.")
        self._child = child = await Child.start(self._command)
        try:
            async with asyncio.TaskGroup() as tasks:
                output = tasks.create_task(child.log_output(), name="engine output")
                await self._attend(child)
                self._mourn()
                await child.end()
                if child.fate:
                    log.warning("the engine process %s", child.fate)
                # What it printed last matters most; a grandchild may hold the pipe for ever.
                await asyncio.wait([output], timeout=LAST_WORDS_S)
                output.cancel()
        finally:
            self._disconnect()
            await child.end()
            child.close()

    async def _attend(self, child: Child) -> None:
        """Talk with the child until it ends or is dismissed."""
        # A child on trial shall answer a probe, not try its luck.
        self._may_warm_up = self._warms_up and not self._circuit.open
        self._set(warm_up_s=None)
        self._send(self._init.model_copy(update={"warm_up": self._may_warm_up}))
        self._send(Preview(on=self._previews))
        async with asyncio.TaskGroup() as tasks:
            ends = [
                tasks.create_task(child.listen(self._take, self._patience), name="engine"),
                tasks.create_task(self._dismissed.wait(), name="engine dismissal"),
            ]
            beside = [
                tasks.create_task(self._probe(), name="engine probes"),
                tasks.create_task(self._unload_when_idle(), name="engine idle time"),
            ]
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            for task in (*ends, *beside):
                task.cancel()

    def _patience(self) -> float:
        """Seconds without a frame after which the child counts as hung."""
        compiling = self.state.phase == WARM_UP or not self._ready.is_set()
        return self._stall_s * LOAD_FACTOR if compiling else self._stall_s

    async def _probe(self) -> None:
        """Have an idle child show regularly that it lives; a busy one answers later."""
        while True:
            await asyncio.sleep(self._stall_s / 3)
            if self._ready.is_set():
                self._send(Probe())

    async def _unload_when_idle(self) -> None:
        """Unload an engine that had nothing to do for `idle_unload_s`."""
        if not self._idle_unload_s:
            return
        await self._ready.wait()
        clock = asyncio.get_running_loop().time
        while self._job or self._last_used + self._idle_unload_s > clock():
            left = self._last_used + self._idle_unload_s - clock()
            await asyncio.sleep(left if left > 0 else self._idle_unload_s)
        log.info("the engine had nothing to do for %.0f s", self._idle_unload_s)
        self.unload()

    def _take(self, frame: FromEngine) -> None:
        self._frames += 1
        match frame:
            case Beat():
                self._set(phase=frame.phase, done=frame.done, of=frame.of)
                if frame.phase == "idle":
                    self._answered()
            case Ready():
                warming = self._may_warm_up and frame.capabilities.warms_up
                self._set(capabilities=frame.capabilities, warming=warming)
                if self._circuit.open:
                    self._send(Probe())  # half open: its answer closes the circuit
                else:
                    self._begin()
            case Warm():
                self._set(warming=False, warm_up_s=frame.seconds)
            case Fatal():
                error = errors.from_code(frame.code, frame.message)
                self._hopeless, self._fatal = frame.code in HOPELESS, error
                self._set(state="failed", reason=f"{error.message} {error.remedy}")
                log.error("the engine cannot load: %s", frame.message)
            case Step() | PreviewImage() | Done() | Failed():
                if self._answers is not None and frame.job == self._job:
                    self._answers.put_nowait(frame)

    def _answered(self) -> None:
        """The child answered a probe."""
        self._circuit.answered()
        if not self._ready.is_set():
            self._begin()

    def _begin(self) -> None:
        """The child is loaded: edits may come."""
        if self._dismissed.is_set():
            return
        self._last_used = asyncio.get_running_loop().time()
        self._ready.set()
        self._set(state="ready", reason="", phase="idle")

    def _mourn(self) -> None:
        """The child is gone, or as good as: say so, and count on it no more."""
        if self.state.phase == WARM_UP and not self._dismissed.is_set():
            log.warning("the engine process ended while warming up; the next one leaves it out")
            self._warms_up = False
        if self.state.state in ("loading", "ready") and not self._dismissed.is_set():
            log.warning("the engine process ended in phase %s; a new one starts", self.state.phase)
            self._set(state="restarting", reason="The engine process ended; a new one starts.")
        self._set(warming=False)
        self._disconnect()

    def _disconnect(self) -> None:
        self._ready.clear()
        if self._answers is not None:
            self._answers.put_nowait(None)

    def _send(self, frame: ToEngine) -> None:
        if self._child:
            self._child.send(frame)

    def _set(self, **change: Any) -> None:
        before, self.state = self.state.state, replace(self.state, **change)
        if self.state.state != before:
            if self.state.state == "failed":
                self._failed.set()
            else:
                self._failed.clear()
            self._on_state(self.state)
