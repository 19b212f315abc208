"""One engine process: frames to it, frames from it, what it prints, and its end."""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Callable

from vellumd import platform
from vellumd.logs import leveled
from vellumd.protocol import (
    FromEngine,
    ProtocolError,
    ToEngine,
    length_of,
    pack,
    parse_from_engine,
)

log = logging.getLogger(__name__)

PIPE_LIMIT = 1 << 16
"""Bytes read ahead of a pipe; the pipe of the system holds as many."""
END_S = 5.0
"""Seconds a child gets to end by itself once its pipe is closed."""
LAST_WORDS_S = 0.5
"""Seconds to read on what a dead child left in a pipe that a grandchild holds open."""


class _Process(asyncio.subprocess.SubprocessStreamProtocol):
    """Tells the end of a process itself.

    `Process.wait` of Python 3.11 waits for the ends of the pipes too (python/cpython#119710).
    """

    def __init__(self) -> None:
        super().__init__(limit=PIPE_LIMIT, loop=asyncio.get_running_loop())
        self.exited = asyncio.Event()

    def process_exited(self) -> None:
        super().process_exited()
        self.exited.set()


class Child:
    """A running engine process. `end` it in any case."""

    def __init__(self, transport: asyncio.SubprocessTransport, protocol: _Process) -> None:
        self._transport = transport
        self._protocol = protocol
        self.ended = False
        self.pid = transport.get_pid()

    @classmethod
    async def start(cls, command: tuple[str, ...]) -> Child:
        """Raises `OSError` without memory or with too many processes or files."""
        pipe = asyncio.subprocess.PIPE
        transport, protocol = await asyncio.get_running_loop().subprocess_exec(
            _Process, *command, stdin=pipe, stdout=pipe, stderr=pipe, **platform.own_group()
        )
        return cls(transport, protocol)

    def send(self, frame: ToEngine) -> None:
        """Write a frame; frames are small, so the pipe's buffer holds what waits."""
        if self._protocol.stdin and not self._protocol.exited.is_set():
            self._protocol.stdin.write(pack(frame))

    def kill(self) -> None:
        """End it now."""
        if not self._protocol.exited.is_set():
            self._transport.kill()

    async def listen(
        self, take: Callable[[FromEngine], None], patience: Callable[[], float]
    ) -> None:
        """Hand its frames to `take` until it ends. Silent for `patience()` s, it is killed.

        The process is watched besides its pipe, which a grandchild may hold open.
        """
        async with asyncio.TaskGroup() as tasks:
            frames = tasks.create_task(self._frames(take, patience), name="engine frames")
            ended = tasks.create_task(self._protocol.exited.wait(), name="engine process")
            await asyncio.wait([frames, ended], return_when=asyncio.FIRST_COMPLETED)
            await asyncio.wait([frames], timeout=LAST_WORDS_S)
            frames.cancel()
            ended.cancel()

    async def _frames(
        self, take: Callable[[FromEngine], None], patience: Callable[[], float]
    ) -> None:
        assert self._protocol.stdout
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(patience()) as deadline:
                while (frame := await _read_frame(self._protocol.stdout)) is not None:
                    take(frame)
                    deadline.reschedule(loop.time() + patience())
        except TimeoutError:
            log.error("the engine gave no sign of life; killed")
            self.kill()
        except ProtocolError as error:
            log.error("the engine's pipe is out of step (%s); killed", error)
            self.kill()

    async def log_output(self) -> None:
        """Pass on what it prints, at the level that its records have, however long lines are."""
        assert self._protocol.stderr
        rest = b""
        while chunk := await self._protocol.stderr.read(8192):
            *lines, rest = (rest + chunk).split(b"\n")
            for line in lines:
                _log(line)
            rest = rest[-8192:]
        if rest:
            _log(rest)

    async def end(self) -> None:
        """Close its pipe, give it `END_S`, then kill it, and whatever it started."""
        if self.ended:
            return
        if self._protocol.stdin:
            self._protocol.stdin.close()
        try:
            async with asyncio.timeout(END_S):
                await self._protocol.exited.wait()
        except TimeoutError:
            self.kill()
            await self._protocol.exited.wait()
        platform.end_group(self.pid)
        self.ended = True

    @property
    def fate(self) -> str:
        """How an ended process ended, for people; empty if in order."""
        code = self._transport.get_returncode() or 0
        if code > 0:
            return f"ended with exit code {code}"
        return f"was ended by {_signal_name(-code)}" if code else ""

    def close(self) -> None:
        """Let go of its pipes, also where another process still holds them."""
        self._transport.close()


def _log(line: bytes) -> None:
    level, text = leveled(line.decode(errors="replace").rstrip())
    log.log(level, "engine: %s", text)


def _signal_name(number: int) -> str:
    try:
        name = signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
    return f"{name} (the system's, if memory ran out)" if name == "SIGKILL" else name


async def _read_frame(pipe: asyncio.StreamReader) -> FromEngine | None:
    try:
        size = length_of(await pipe.readexactly(4))
        return parse_from_engine(await pipe.readexactly(size))
    except asyncio.IncompleteReadError:
        return None
