"""The supervisor: whatever the engine process does, the daemon hears of it and goes on."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from vellumd import errors
from vellumd.models import ImageRef, ResolvedEdit
from vellumd.protocol import Done, Init, PreviewImage, Step
from vellumd.supervisor import EngineAbsentError, EngineDiedError, Supervisor


def edit(prompt: str = "invert", steps: int = 3) -> ResolvedEdit:
    return ResolvedEdit(
        model="demo", prompt=prompt, images=(ImageRef(sha256="0" * 64, width=64, height=48),),
        steps=steps, true_cfg_scale=1.0, seed=1,
    )  # fmt: skip


@asynccontextmanager
async def supervised(
    tmp_path: Path, stall_s: float = 20, **options: Any
) -> AsyncIterator[Supervisor]:
    init = Init(
        engine="paper_engine:create", settings={"model": "demo"}, options=options,
        spool=tmp_path, cache=tmp_path,
    )  # fmt: skip
    supervisor = Supervisor(init, stall_s)
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(supervisor.run())
        yield supervisor
        running.cancel()


@pytest.fixture
def job(tmp_path: Path, picture: Any) -> str:
    """The id of a job whose input lies in the spool."""
    (tmp_path / "job").mkdir()
    (tmp_path / "job" / "input-1.png").write_bytes(picture())
    return "job"


async def collect(supervisor: Supervisor, job: str, wanted: ResolvedEdit) -> list[Any]:
    return [frame async for frame in supervisor.edit(job, wanted)]


async def test_an_edit_tells_its_steps_and_its_results(tmp_path: Path, job: str) -> None:
    """Steps come in order, Done last, and the file it names is there."""
    async with supervised(tmp_path) as supervisor:
        await supervisor.ready()
        *steps, done = await collect(supervisor, job, edit())
        assert [step.progress.step for step in steps if isinstance(step, Step)] == [1, 2, 3]
        assert isinstance(done, Done)
        assert (tmp_path / job / done.results[0].file).is_file()
        assert supervisor.state.state == "ready"


@pytest.mark.parametrize("how", ["crash", "kill"])
async def test_a_death_is_heard_and_mended(tmp_path: Path, job: str, how: str) -> None:
    """The edit raises, not ready at once; another process takes over and edits."""
    async with supervised(tmp_path, step_s=0.05) as supervisor:
        await supervisor.ready()
        first = supervisor.process_id
        with pytest.raises(EngineDiedError):
            async for _ in supervisor.edit(job, edit("crash" if how == "crash" else "x", 50)):
                os.kill(first, signal.SIGKILL)
        assert not supervisor.state.ready
        await supervisor.ready()
        assert supervisor.process_id != first and supervisor.state.restarts == 1
        assert isinstance((await collect(supervisor, job, edit()))[-1], Done)


async def test_a_hang_is_killed(tmp_path: Path, job: str) -> None:
    """No sign of life for stall_s ends the process; the next one works."""
    async with supervised(tmp_path, stall_s=0.5) as supervisor:
        await supervisor.ready()
        with pytest.raises(EngineDiedError):
            async with asyncio.timeout(5):
                await collect(supervisor, job, edit("hang"))
        await supervisor.ready()
        assert isinstance((await collect(supervisor, job, edit()))[-1], Done)


async def test_a_stopped_idle_engine_is_found_out(tmp_path: Path) -> None:
    """An idle engine is probed: SIGSTOP turns ready to not ready within stall_s."""
    async with supervised(tmp_path, stall_s=0.5) as supervisor:
        await supervisor.ready()
        os.kill(supervisor.process_id, signal.SIGSTOP)
        async with asyncio.timeout(5):
            while supervisor.state.ready:
                await asyncio.sleep(0.02)
        await supervisor.ready()


async def test_slow_is_not_hung(tmp_path: Path, job: str) -> None:
    """Steps that give signs of life may take far longer than stall_s in all."""
    async with supervised(tmp_path, stall_s=0.6, step_s=0.3) as supervisor:
        await supervisor.ready()
        assert isinstance((await collect(supervisor, job, edit(steps=6)))[-1], Done)
        assert supervisor.state.restarts == 0


async def test_cancel_ends_the_edit_not_the_engine(tmp_path: Path, job: str) -> None:
    """The edit raises Cancelled within a step; the same process edits on."""
    async with supervised(tmp_path, step_s=0.02) as supervisor:
        await supervisor.ready()
        with pytest.raises(errors.Cancelled):
            async for _ in supervisor.edit(job, edit(steps=100)):
                supervisor.cancel(job)
        assert isinstance((await collect(supervisor, job, edit()))[-1], Done)
        assert supervisor.state.restarts == 0


async def test_previews_on_demand(tmp_path: Path, job: str) -> None:
    """Previews come while somebody looks, and only then."""
    async with supervised(tmp_path) as supervisor:
        await supervisor.ready()
        supervisor.show_previews(True)
        seen = await collect(supervisor, job, edit())
        assert any(isinstance(frame, PreviewImage) for frame in seen)
        supervisor.show_previews(False)
        seen = await collect(supervisor, job, edit())
        assert not any(isinstance(frame, PreviewImage) for frame in seen)


async def test_a_failed_edit_shows_no_inside(tmp_path: Path, job: str) -> None:
    """An exception in the engine becomes `internal`, without its text."""
    async with supervised(tmp_path) as supervisor:
        await supervisor.ready()
        with pytest.raises(errors.Internal) as caught:
            await collect(supervisor, job, edit("fail"))
        assert "passwd" not in str(caught.value.public())


async def test_black_is_an_error(tmp_path: Path, job: str) -> None:
    """An all-black picture is bad_output, never a result."""
    async with supervised(tmp_path) as supervisor:
        await supervisor.ready()
        with pytest.raises(errors.BadOutput):
            await collect(supervisor, job, edit("black"))


async def test_an_engine_that_cannot_load_says_why(tmp_path: Path) -> None:
    """The reason of a refused load is kept while it is tried again."""
    async with supervised(tmp_path, load_error="model_missing") as supervisor:
        async with asyncio.timeout(20):
            while supervisor.state.state != "failed" or supervisor.state.restarts < 1:
                await asyncio.sleep(0.02)
        assert "paper is missing" in supervisor.state.reason
        assert not supervisor.state.ready


async def test_the_end_leaves_no_process(tmp_path: Path) -> None:
    """Cancelling the supervisor ends its child."""
    async with supervised(tmp_path) as supervisor:
        await supervisor.ready()
        pid = supervisor.process_id
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


async def test_an_edit_without_an_engine_is_told_apart(tmp_path: Path, job: str) -> None:
    """An edit that never reached a child is not counted as what killed one."""
    async with supervised(tmp_path, load_s=5) as supervisor:
        with pytest.raises(EngineAbsentError):
            await collect(supervisor, job, edit())
