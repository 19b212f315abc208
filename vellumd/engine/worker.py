"""The child process: frames in, one edit at a time, files and frames out.

It knows no torch, so any engine runs in it. One thread reads frames, so that a cancel
reaches a running edit; the main thread works.
"""

from __future__ import annotations

import importlib
import logging
import os
import queue
import signal
import sys
import threading
import time
from collections.abc import Callable
from typing import BinaryIO, NoReturn, cast

from vellumd import errors, platform
from vellumd.engine import faults, finish
from vellumd.engine.report import PipeReport
from vellumd.engine.warm_up import WarmUp
from vellumd.logs import LeveledLines
from vellumd.protocol import (
    VERSION,
    Beat,
    Cancel,
    Done,
    Edit,
    Engine,
    Failed,
    Fatal,
    FromEngine,
    Hello,
    Init,
    Preview,
    Probe,
    ProtocolError,
    Ready,
    WarmEngine,
    pack,
    read_to_engine,
)
from vellumd.settings import Limits

log = logging.getLogger(__name__)

BROKEN = 70
"""Exit status after an error that leaves the process unusable (EX_SOFTWARE, sysexits.h)."""


def main() -> None:
    """Run as the daemon's child until stdin ends."""
    frames_in, frames_out = platform.binary_pipes()
    platform.offer_to_oom_killer()
    # Before any numeric library comes up: its idle threads shall sleep. Spinning ones take
    # the cores from each other and from the daemon (2 busy cores: 17 s an edit, not 1 s).
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # Ctrl+C in a terminal reaches the child too; what it means is the daemon's to decide.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(LeveledLines())
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    Worker(frames_in, frames_out).run()


class Worker:
    """Serves frames with the engine that the first one names."""

    def __init__(self, frames_in: BinaryIO, frames_out: BinaryIO) -> None:
        self._in = frames_in
        self._out = frames_out
        self._writing = threading.Lock()
        self._frames: queue.SimpleQueue[Init | Edit | Probe] = queue.SimpleQueue()
        self._cancels: dict[str, threading.Event] = {}
        self._preview = threading.Event()
        self._cold = False
        self._warm_up: WarmUp | None = None

    def run(self) -> None:
        """Load the engine, then edit until the process ends."""
        threading.Thread(target=self._read, name="frames", daemon=True).start()
        init = self._frames.get()
        if not isinstance(init, Init) or init.protocol != VERSION:
            self._fatal(errors.Internal("Daemon and engine speak different protocols."))
        self._send(Hello(pid=os.getpid()))
        engine = self._load(init)
        while True:
            if self._warm_up and self._warm_up.pending and self._frames.empty():
                self._warm()
            frame = self._frames.get()
            if isinstance(frame, Edit):
                self._edit(engine, init, frame)
            elif isinstance(frame, Probe):
                self._send(Beat(phase="idle"))

    def _read(self) -> None:
        """Take frames as they come, until the pipe ends."""
        try:
            while (frame := read_to_engine(self._in)) is not None:
                if isinstance(frame, Cancel):
                    if event := self._cancels.get(frame.job):
                        event.set()
                elif isinstance(frame, Preview):
                    self._preview.set() if frame.on else self._preview.clear()
                else:
                    if isinstance(frame, Edit):
                        self._cancels[frame.job] = threading.Event()
                    self._frames.put(frame)
        except ProtocolError:
            log.exception("the pipe from the daemon is out of step")
            os._exit(BROKEN)
        # The daemon is gone. Nobody wants the edit, and only this way out is quick: the
        # main thread may be deep in a kernel. What is on disk is valid at any moment.
        os._exit(0)

    def _send(self, frame: FromEngine) -> None:
        """Write `frame` whole; without a reader there is nothing left to do."""
        data = memoryview(pack(frame))
        try:
            with self._writing:
                while data:
                    data = data[self._out.write(data) :]
        except OSError:
            os._exit(0)

    def _fatal(self, error: errors.VellumError) -> NoReturn:
        """Tell why there will be no edit, and end.

        Not by sys.exit: the interpreter would wait for the lock of the pipe that the
        other thread is reading.
        """
        self._send(Fatal(code=error.code, message=error.message))
        os._exit(1)

    def _load(self, init: Init) -> Engine:
        """Import the factory, make the engine, load it; or tell why not and end."""
        report = PipeReport(self._send, preview=self._preview.is_set)
        try:
            report.beat("import")
            module, _, name = init.engine.partition(":")
            factory: Callable[[Init], Engine] = getattr(importlib.import_module(module), name)
            engine = factory(init)
            capabilities = engine.load(report)
        except errors.VellumError as error:  # it says all there is to say
            self._fatal(error)
        except Exception:
            log.exception("the engine did not load")
            self._fatal(errors.Internal("The engine could not be loaded."))
        self._cold = capabilities.warms_up
        if capabilities.warms_up and init.warm_up:
            self._warm_up = WarmUp(cast("WarmEngine", engine), self._send, self._awaited)
        self._send(Ready(capabilities=capabilities))
        return engine

    def _awaited(self) -> bool:
        """Whether an edit is there; each has its cancel from when it came until it is over."""
        return bool(self._cancels)

    def _warm(self) -> None:
        """Warm up while nothing else is to be done."""
        assert self._warm_up
        try:
            self._warm_up.go_on()
        except Exception:
            log.exception("the card is lost to this process")
            os._exit(BROKEN)
        self._cold = self._cold and not self._warm_up.warm

    def _edit(self, engine: Engine, init: Init, frame: Edit) -> None:
        """Do one edit and answer with `Done` or `Failed`, whatever happens."""
        report = PipeReport(self._send, frame.job, preview=self._preview.is_set)
        if self._cold:
            report.warn("engine_cold")
        try:
            answer: Done | Failed = self._work(engine, init, frame, report)
        except Exception as error:
            if faults.is_sticky(error):
                # The CUDA context is lost for this process; the daemon starts another
                # one and repeats the job, so it gets no answer here.
                log.exception("job %s: the card is lost to this process", frame.job)
                os._exit(BROKEN)
            answer = _failed(frame.job, error, report)
        self._cold = self._cold and not isinstance(answer, Done)
        del self._cancels[frame.job]
        self._send(answer)

    def _work(self, engine: Engine, init: Init, frame: Edit, report: PipeReport) -> Done:
        """Decode the inputs, let the engine paint, write each result as it comes."""
        started = time.monotonic()
        edit, folder = frame.edit, init.spool / frame.job
        report.beat("decode inputs")
        files, mask = finish.input_files(folder, edit)
        finish.check(folder, edit)
        inputs = finish.decode(files, mask, Limits.model_validate(init.limits))
        for code in finish.warnings(edit, inputs):
            report.warn(code)
        results = finish.Results(folder, frame.job, edit, inputs)
        cancelled = self._cancels[frame.job].is_set
        for picture in engine.edit(edit, files, report, cancelled):
            report.beat("write", len(results.written) + 1, edit.n)
            results.write(picture, report.loras)
        if cancelled():
            raise errors.Cancelled("The job was cancelled.")
        elapsed, timings = round(time.monotonic() - started, 3), report.timings()
        results.close(elapsed, timings, report.warnings, report.loras)
        return Done(
            job=frame.job,
            results=tuple(results.written),
            elapsed_s=elapsed,
            timings=timings,
            warnings=report.notices(),
        )


def _failed(job: str, error: Exception, report: PipeReport) -> Failed:
    """The answer for `error`; the text of an unexpected one stays in the log."""
    told = faults.coded(error)
    if told is error:
        log.info("job %s: %s", job, told.code)
    else:
        log.error("job %s failed", job, exc_info=error)
    return Failed(
        job=job,
        code=told.code,
        message=told.message,
        warnings=report.notices(),
        unstored=isinstance(error, faults.UnstoredError),
    )
