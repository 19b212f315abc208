"""The service manager hears that the daemon is ready and lives, and no more than is true."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.test_daemon import submit
from vellumd import platform
from vellumd.daemon import Daemon
from vellumd.watchdog import GRACE_S, Part, Watchdog

Run = Callable[..., AbstractAsyncContextManager[Daemon]]


LIMIT_S = 2.0
"""Long enough for a daemon on a busy machine."""


class Manager:
    """What systemd hears."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(str(path))
        self.socket.setblocking(False)

    async def hear(self, seconds: float = 20.0) -> str:
        """The next message; empty if none comes in time."""
        try:
            async with asyncio.timeout(seconds):
                return (await asyncio.get_running_loop().sock_recv(self.socket, 1024)).decode()
        except TimeoutError:
            return ""

    async def silence(self, seconds: float) -> bool:
        """Whether, after what was under way, nothing comes for so long."""
        while await self.hear(0.05):
            pass
        return not await self.hear(seconds)


@pytest.fixture
def manager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Manager]:
    """A manager that bites after `LIMIT_S`, for this process and its children."""
    found = Manager(tmp_path / "notify")
    monkeypatch.setenv("NOTIFY_SOCKET", str(found.path))
    monkeypatch.setenv("WATCHDOG_USEC", str(round(LIMIT_S * 1e6)))
    yield found
    found.socket.close()


@asynccontextmanager
async def serve(folder: Path, *more: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """`vellumd serve` with the paper engine, as a service manager starts it."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "vellumd", "serve", "--store.dir", str(folder / "data"),
        "--engine.name", "paper", "--plugins.paper.step_s", "0", "--plugins.http.port", "0", *more,
        cwd=folder, stdout=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    try:
        yield process
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGCONT)
            process.terminate()
        await process.wait()


async def test_ready_fed_and_stopping(manager: Manager, tmp_path: Path) -> None:
    """READY once the doors are open, then food within the limit, then STOPPING, in this order."""
    async with serve(tmp_path) as process:
        assert await manager.hear() == "READY=1"
        assert (tmp_path / "data/daemon.json").exists()
        assert [await manager.hear(LIMIT_S) for _ in range(4)] == ["WATCHDOG=1"] * 4
        process.terminate()
        while (told := await manager.hear()) == "WATCHDOG=1":
            pass
        assert told == "STOPPING=1"
        assert await process.wait() == 0


async def test_a_hung_loop_is_not_fed(manager: Manager, tmp_path: Path) -> None:
    """A daemon that stands still says nothing; one that goes on is fed again."""
    async with serve(tmp_path) as process:
        assert await manager.hear() == "READY=1"
        process.send_signal(signal.SIGSTOP)
        assert await manager.silence(LIMIT_S)
        process.send_signal(signal.SIGCONT)
        assert await manager.hear() == "WATCHDOG=1"


async def test_a_hung_engine_is_the_supervisors(manager: Manager, tmp_path: Path) -> None:
    """A stopped engine process is replaced while the daemon is fed all along."""
    async with serve(tmp_path, "--engine.stall_s", "1") as process:
        assert await manager.hear() == "READY=1"
        url = (tmp_path / "data/daemon.json").read_text().split('"url": "')[1].split('"')[0]
        async with aiohttp.ClientSession(url) as session, asyncio.TaskGroup() as tasks:
            await until_ready(session, restarts=0)
            os.kill(engine_of(process.pid), signal.SIGSTOP)
            feeding = tasks.create_task(fed(manager))
            await until_ready(session, restarts=1)
            assert not feeding.done()
            feeding.cancel()


async def fed(manager: Manager) -> None:
    """Return when the daemon is not fed within the limit."""
    while await manager.hear(LIMIT_S):
        pass


async def until_ready(session: aiohttp.ClientSession, restarts: int) -> None:
    """Wait until the engine that came after so many restarts is ready."""
    async with asyncio.timeout(30):
        while True:
            async with session.get("/v1/capabilities") as answer:
                engine = (await answer.json())["engine"]
            if engine["ready"] and engine["restarts"] == restarts:
                return
            await asyncio.sleep(0.05)


def engine_of(pid: int) -> int:
    """The process id of the engine of a daemon."""
    (engine,) = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return int(engine)


def stand_still() -> tuple[list[float], Watchdog, dict[str, Any]]:
    """A clock, a watchdog of one part that may be silent for 10 s, and the part's sign."""
    clock, signs = [0.0], {"part": 0}
    watchdog = Watchdog([Part("part", lambda: signs["part"], 10)], lambda: clock[0])
    return clock, watchdog, signs


def test_a_part_that_stands_still_is_stuck() -> None:
    """After its silence and a grace, not before; and no more once it goes on."""
    clock, watchdog, signs = stand_still()
    assert watchdog.stuck() == []
    clock[0] += 10 + GRACE_S
    assert watchdog.stuck() == []
    clock[0] += 1
    assert watchdog.stuck() == ["part"]
    signs["part"] += 1
    assert watchdog.stuck() == []


def test_a_part_that_waits_is_not_stuck() -> None:
    """Waiting may last; what comes after it has its whole time."""
    clock, watchdog, signs = stand_still()
    signs["part"] = None
    for _ in range(5):
        clock[0] += 1000
        assert watchdog.stuck() == []
    signs["part"] = 7
    assert watchdog.stuck() == []
    clock[0] += 11 + GRACE_S
    assert watchdog.stuck() == ["part"]


async def test_an_executor_that_hangs_is_seen(
    run_daemon: Run, picture: Callable[..., bytes]
) -> None:
    """One that waits for jobs, a pause or an engine is well; one that never claims is stuck."""
    clock = [0.0]
    async with run_daemon(daemon={"stop_s": 0.1}) as daemon:
        watchdog = Watchdog(daemon.parts(), lambda: clock[0])
        await daemon.supervisor.ready()

        def executor_stuck() -> bool:
            watchdog.stuck()
            clock[0] += daemon.settings.engine.stall_s + GRACE_S + 1
            return "executor" in watchdog.stuck()

        assert not executor_stuck()
        await daemon.executor.pause()
        await submit(daemon, picture())
        assert not executor_stuck()
        claiming = asyncio.Event()

        async def never(lane: int) -> None:
            claiming.set()
            await asyncio.Event().wait()

        daemon.jobs.claim = never  # type: ignore[method-assign]
        await daemon.executor.resume()
        await claiming.wait()
        assert executor_stuck()


async def test_an_edit_lives_by_its_engine(run_daemon: Run, picture: Callable[..., bytes]) -> None:
    """During an edit the engine's frames are the executor's signs; without them it is stuck."""
    clock = [0.0]
    async with run_daemon(paper={"step_s": 0.05}, daemon={"stop_s": 0.1}) as daemon:
        watchdog = Watchdog(daemon.parts(), lambda: clock[0])
        job = await submit(daemon, picture(), steps=100)
        steps = daemon.jobs.events(job.id, 0, previews=False)
        for _ in range(3):
            while (await anext(steps)).type != "step":
                pass
            assert watchdog.stuck() == []
            clock[0] += daemon.settings.engine.stall_s + GRACE_S
        os.kill(daemon.supervisor.process_id, signal.SIGSTOP)
        with pytest.raises(TimeoutError):  # until all that it had said was heard
            while True:
                async with asyncio.timeout(0.5):
                    await anext(steps)
        watchdog.stuck()
        clock[0] += daemon.settings.engine.stall_s + GRACE_S + 1
        assert watchdog.stuck() == ["executor"]
        clock[0] += daemon.supervisor.silent_s + GRACE_S
        assert watchdog.stuck() == ["executor", "supervisor"]
        os.kill(daemon.supervisor.process_id, signal.SIGCONT)
        await steps.aclose()


@pytest.mark.parametrize("limit", ["", "0", "soon"])
def test_no_watchdog_no_food(limit: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a manager's limit, with nonsense, or with another process meant, there is none."""
    monkeypatch.setenv("WATCHDOG_USEC", limit)
    assert platform.watchdog_s() == 0
    monkeypatch.setenv("WATCHDOG_USEC", "30000000")
    assert platform.watchdog_s() == 30
    monkeypatch.setenv("WATCHDOG_PID", "1")
    assert platform.watchdog_s() == 0


def test_a_manager_that_is_gone_harms_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A socket that is not there, and an abstract one, cost nothing."""
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "gone"))
    platform.notify_manager("READY=1")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as abstract:
        abstract.bind(f"\0vellumd-test-{os.getpid()}")
        monkeypatch.setenv("NOTIFY_SOCKET", f"@vellumd-test-{os.getpid()}")
        platform.notify_manager("READY=1")
        assert abstract.recv(64) == b"READY=1"
