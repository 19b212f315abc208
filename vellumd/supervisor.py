"""The life of the engine process: started, watched, fed one edit at a time, replaced.

The child gives a sign of life with every bit of work, and answers a probe while idle.
No sign for `stall_s` means that it hangs: it is killed, as one that died is replaced.
"""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

from vellumd import errors, platform
from vellumd.models import ResolvedEdit
from vellumd.protocol import (
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
    ProtocolError,
    Ready,
    Step,
    ToEngine,
    length_of,
    pack,
    parse_from_engine,
)

log = logging.getLogger(__name__)

COMMAND = (sys.executable, "-m", "vellumd.engine")
LOAD_FACTOR = 5
"""Loading and compiling may be silent for this many times `stall_s`."""
BACKOFF_S = (0.0, 1.0, 2.0, 5.0, 15.0, 60.0)
"""Seconds before the next start after as many deaths without a finished edit."""
END_S = 5.0
"""Seconds a child gets to end by itself once its pipe is closed."""
LAST_WORDS_S = 1.0
"""Seconds to read on what a dead child printed."""


Answer = Step | PreviewImage | Done | Failed


class EngineDiedError(Exception):
    """The child ended or was killed before it answered."""


class EngineAbsentError(EngineDiedError):
    """The child was gone before it got the edit, so the edit is not what ended it."""


@dataclass(frozen=True)
class EngineState:
    """How the engine is. `phase`, `done` and `of` are its last sign of life."""

    state: Literal["loading", "ready", "restarting", "failed"] = "loading"
    reason: str = "The engine is starting."
    phase: str = "start"
    done: int = 0
    of: int = 0
    restarts: int = 0
    capabilities: Capabilities | None = None

    @property
    def ready(self) -> bool:
        """Whether an edit could start now."""
        return self.state == "ready"


class Supervisor:
    """One engine process after another. `run` lives as long as the daemon."""

    def __init__(
        self,
        init: Init,
        stall_s: float,
        *,
        command: tuple[str, ...] = COMMAND,
        on_state: Callable[[EngineState], None] = lambda state: None,
    ) -> None:
        self._init = init
        self._stall_s = stall_s
        self._command = command
        self._on_state = on_state
        self._process: asyncio.subprocess.Process | None = None
        self._answers: asyncio.Queue[Answer | None] | None = None
        self._job = ""
        self._ready = asyncio.Event()
        self._previews = False
        self._deaths = 0
        self.state = EngineState()

    @property
    def process_id(self) -> int:
        """The child's process id; 0 before the first one."""
        return self._process.pid if self._process else 0

    async def run(self) -> None:
        """Keep an engine alive until cancelled; then end it."""
        while True:
            try:
                await self._live_once()
            except OSError:  # too many files or processes, or no memory
                log.exception("the engine process could not be started")
                self._set(state="failed", reason="The engine process could not be started.")
            self._deaths += 1
            self._set(restarts=self.state.restarts + 1)
            pause = BACKOFF_S[min(self._deaths - 1, len(BACKOFF_S) - 1)]
            await asyncio.sleep(pause)  # so that a broken engine does not spin

    async def ready(self) -> None:
        """Wait until an edit could start."""
        await self._ready.wait()

    async def edit(
        self, job_id: str, edit: ResolvedEdit
    ) -> AsyncGenerator[Step | PreviewImage | Done, None]:
        """Do an edit whose inputs lie in the spool; `Done` comes last. One at a time.

        Raises `EngineAbsentError` if it could not start, `EngineDiedError`, or the error
        the edit failed with. `cancel` counts from the first `anext` on.
        """
        answers: asyncio.Queue[Answer | None] = asyncio.Queue()
        self._answers, self._job = answers, job_id
        try:
            if not self._ready.is_set():
                raise EngineAbsentError
            self._send(Edit(job=job_id, edit=edit))
            while (answer := await answers.get()) is not None:
                if isinstance(answer, (Done, Failed)):
                    self._deaths = 0
                if isinstance(answer, Failed):
                    raise errors.from_code(answer.code, answer.message)
                yield answer
                if isinstance(answer, Done):
                    return
            raise EngineDiedError
        finally:
            self._answers, self._job = None, ""

    def cancel(self, job_id: str) -> None:
        """Ask the child to stop this edit, if it runs."""
        self._send(Cancel(job=job_id))

    def show_previews(self, wanted: bool) -> None:
        """Have the child send previews, or not."""
        self._previews = wanted
        self._send(Preview(on=wanted))

    def kill(self) -> None:
        """End the child now; its edit raises `EngineDiedError`."""
        if self._process and self._process.returncode is None:
            self._process.kill()

    # one child

    async def _live_once(self) -> None:
        """Start a child, follow it until it ends, clean up behind it."""
        if self.state.state != "failed":
            self._set(state="loading", reason="The engine is loading.")
        self._process = process = await asyncio.create_subprocess_exec(
            *self._command,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            **platform.own_group(),
        )
        try:
            async with asyncio.TaskGroup() as tasks:
                reader = tasks.create_task(self._log_stderr(process), name="engine stderr")
                prober = tasks.create_task(self._probe(), name="engine probes")
                await self._converse(process)
                prober.cancel()
                await end(process)
                # What it printed last matters most; a grandchild may hold the pipe for ever.
                await asyncio.wait([reader], timeout=LAST_WORDS_S)
                reader.cancel()
        finally:
            self._disconnect()
            await end(process)

    async def _converse(self, process: asyncio.subprocess.Process) -> None:
        """Take the child's frames until it ends, or hangs and is killed."""
        assert process.stdout
        self._send(self._init)
        self._send(Preview(on=self._previews))
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(self._patience()) as deadline:
                while (frame := await _read_frame(process.stdout)) is not None:
                    self._take(frame)
                    deadline.reschedule(loop.time() + self._patience())
        except TimeoutError:
            log.error("the engine gave no sign of life in phase %s; killed", self.state.phase)
            self.kill()
        except ProtocolError as error:
            log.error("the engine's pipe is out of step (%s); killed", error)
            self.kill()
        self._mourn()

    def _patience(self) -> float:
        """Seconds without a frame after which the child counts as hung."""
        return self._stall_s if self._ready.is_set() else self._stall_s * LOAD_FACTOR

    async def _probe(self) -> None:
        """Have an idle child show regularly that it lives; a busy one answers later."""
        while True:
            await asyncio.sleep(self._stall_s / 3)
            self._send(Probe())

    def _take(self, frame: FromEngine) -> None:
        match frame:
            case Beat():
                self._set(phase=frame.phase, done=frame.done, of=frame.of)
            case Ready():
                self._ready.set()
                self._set(state="ready", reason="", phase="idle", capabilities=frame.capabilities)
            case Fatal():
                error = errors.from_code(frame.code, frame.message)
                self._set(state="failed", reason=f"{error.message} {error.remedy}")
                log.error("the engine cannot load: %s", frame.message)
            case Step() | PreviewImage() | Done() | Failed():
                if self._answers is not None and frame.job == self._job:
                    self._answers.put_nowait(frame)

    def _mourn(self) -> None:
        """The child is gone, or as good as: say so, and count on it no more."""
        if self.state.state in ("loading", "ready"):
            log.warning("the engine process ended; a new one starts")
            self._set(state="restarting", reason="The engine process ended; a new one starts.")
        self._disconnect()

    def _disconnect(self) -> None:
        self._ready.clear()
        if self._answers is not None:
            self._answers.put_nowait(None)

    def _send(self, frame: ToEngine) -> None:
        """Write a frame; frames are small, so the pipe's buffer holds what waits."""
        if self._process and self._process.stdin and self._process.returncode is None:
            self._process.stdin.write(pack(frame))

    def _set(self, **change: Any) -> None:
        before, self.state = self.state.state, replace(self.state, **change)
        if self.state.state != before:
            self._on_state(self.state)

    async def _log_stderr(self, process: asyncio.subprocess.Process) -> None:
        """Pass on what the child prints, however long its lines are."""
        assert process.stderr
        rest = b""
        while chunk := await process.stderr.read(8192):
            *lines, rest = (rest + chunk).split(b"\n")
            for line in lines:
                log.info("engine: %s", line.decode(errors="replace").rstrip())
            rest = rest[-8192:]
        if rest:
            log.info("engine: %s", rest.decode(errors="replace").rstrip())


async def _read_frame(pipe: asyncio.StreamReader) -> FromEngine | None:
    try:
        size = length_of(await pipe.readexactly(4))
        return parse_from_engine(await pipe.readexactly(size))
    except asyncio.IncompleteReadError:
        return None


async def end(process: asyncio.subprocess.Process) -> None:
    """End a child: close its pipe, give it `END_S`, then kill it."""
    if process.stdin:
        process.stdin.close()
    if process.returncode is None:
        try:
            async with asyncio.timeout(END_S):
                await process.wait()
        except TimeoutError:
            process.kill()
            await process.wait()
