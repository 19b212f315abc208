"""The supervisor: whatever the engine process does, the daemon hears of it and goes on."""

from __future__ import annotations

import asyncio
import hashlib
import io
import os
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from vellumd import errors
from vellumd.circuit import Circuit
from vellumd.models import ImageRef, ResolvedEdit
from vellumd.protocol import Done, Init, PreviewImage, Step
from vellumd.supervisor import (
    EditFailedError,
    EngineAbsentError,
    EngineDiedError,
    EngineState,
    Supervisor,
)

INPUT = io.BytesIO()
Image.new("RGB", (64, 48), "teal").save(INPUT, "PNG")
SHA256 = hashlib.sha256(INPUT.getvalue()).hexdigest()


def edit(prompt: str = "invert", steps: int = 3) -> ResolvedEdit:
    return ResolvedEdit(
        model="demo", prompt=prompt, images=(ImageRef(sha256=SHA256, width=64, height=48),),
        steps=steps, true_cfg_scale=1.0, seed=1,
    )  # fmt: skip


@asynccontextmanager
async def supervised(
    tmp_path: Path,
    stall_s: float = 20,
    idle_unload_s: float = 0,
    circuit: Circuit | None = None,
    **options: Any,
) -> AsyncIterator[Supervisor]:
    init = Init(
        engine="paper_engine:create", settings={"model": "demo"}, options=options,
        spool=tmp_path, cache=tmp_path,
    )  # fmt: skip
    supervisor = Supervisor(init, stall_s, idle_unload_s=idle_unload_s, circuit=circuit)
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(supervisor.run())
        yield supervisor
        running.cancel()


@pytest.fixture
def job(tmp_path: Path) -> str:
    """The id of a job whose input lies in the spool."""
    (tmp_path / "job").mkdir()
    (tmp_path / "job" / "input-1.png").write_bytes(INPUT.getvalue())
    return "job"


@contextmanager
def failing(kind: type[errors.VellumError]) -> Iterator[None]:
    """The edit inside ends with an error of `kind`."""
    with pytest.raises(EditFailedError) as caught:
        yield
    assert isinstance(caught.value.error, kind)


async def until(supervisor: Supervisor, state: str) -> None:
    """Wait until the engine is in `state`."""
    async with asyncio.timeout(20):
        while supervisor.state.state != state:
            await asyncio.sleep(0.01)


def alive(pid: int) -> bool:
    """Whether the process is there."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def running_in_group(leader: int) -> list[str]:
    """State and name of all processes of a group that have not ended."""
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            name, _, rest = status.read_text().rpartition(")")
            state, _, group, *_ = rest.split()
            if int(group) == leader and state not in "ZX":
                found.append(f"{state} {name}")
    return found


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
async def test_a_death_is_heard_and_mended(
    tmp_path: Path, job: str, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The edit raises, not ready at once; another process takes over and edits.

    The log says what ended it, since the system's own killer leaves no other word.
    """
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
    assert "the engine process was ended by SIGKILL" in caplog.text


async def test_a_hang_is_killed(tmp_path: Path, job: str) -> None:
    """No sign of life for stall_s ends the process; the next one works."""
    async with supervised(tmp_path, stall_s=1) as supervisor:
        await supervisor.ready()
        with pytest.raises(EngineDiedError):
            async with asyncio.timeout(20):
                await collect(supervisor, job, edit("hang"))
        await supervisor.ready()
        assert isinstance((await collect(supervisor, job, edit()))[-1], Done)


async def test_a_stopped_idle_engine_is_found_out(tmp_path: Path) -> None:
    """An idle engine is probed: SIGSTOP turns ready to not ready within stall_s."""
    async with supervised(tmp_path, stall_s=1) as supervisor:
        await supervisor.ready()
        os.kill(supervisor.process_id, signal.SIGSTOP)
        async with asyncio.timeout(20):
            while supervisor.state.ready:
                await asyncio.sleep(0.02)
        await supervisor.ready()


async def test_slow_is_not_hung(tmp_path: Path, job: str) -> None:
    """Steps that give signs of life may take far longer than stall_s in all."""
    async with supervised(tmp_path, stall_s=2, step_s=0.5) as supervisor:
        await supervisor.ready()
        assert isinstance((await collect(supervisor, job, edit(steps=5)))[-1], Done)
        assert supervisor.state.restarts == 0


async def test_cancel_ends_the_edit_not_the_engine(tmp_path: Path, job: str) -> None:
    """The edit raises Cancelled within a step; the same process edits on."""
    async with supervised(tmp_path, step_s=0.02) as supervisor:
        await supervisor.ready()
        with failing(errors.Cancelled):
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


async def test_a_failed_edit_shows_no_inside(
    tmp_path: Path, job: str, caplog: pytest.LogCaptureFixture
) -> None:
    """An exception in the engine becomes `internal`, without its text, which the log has."""
    async with supervised(tmp_path) as supervisor:
        await supervisor.ready()
        with pytest.raises(EditFailedError) as caught:
            await collect(supervisor, job, edit("fail"))
        assert isinstance(caught.value.error, errors.Internal)
        assert "passwd" not in str(caught.value.error.public())
    told = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    assert told[0] == "engine: vellumd.engine.worker job job failed"
    assert told[1] == "engine: Traceback (most recent call last):"
    assert "passwd" in told[-1]


async def test_black_is_an_error(tmp_path: Path, job: str) -> None:
    """An all-black picture is bad_output, never a result."""
    async with supervised(tmp_path) as supervisor:
        await supervisor.ready()
        with failing(errors.BadOutput):
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


async def test_a_grandchild_hides_no_death(tmp_path: Path, job: str) -> None:
    """A process that the engine left holds its pipes: the death is heard all the same,
    within a second (in the best of three tries), and the process ends too."""
    clock = asyncio.get_running_loop().time
    took: list[float] = []
    async with supervised(tmp_path) as supervisor:
        while len(took) < 3 and min(took, default=9) > 1:
            await supervisor.ready()
            first = supervisor.process_id
            began = clock()
            with pytest.raises(EngineDiedError):
                await collect(supervisor, job, edit("orphan"))
            took.append(clock() - began)
            await supervisor.ready()
            assert not running_in_group(first)
            assert isinstance((await collect(supervisor, job, edit()))[-1], Done)
    assert min(took) <= 1


async def test_unloading_ends_the_process(tmp_path: Path, job: str) -> None:
    """Unloaded is ready, without a process; who wants the engine has it loaded."""
    async with supervised(tmp_path) as supervisor:
        await supervisor.ready()
        first = supervisor.process_id
        supervisor.unload()
        await until(supervisor, "unloaded")
        assert supervisor.state.ready and not supervisor.state.loaded
        assert not alive(first)
        await supervisor.ready()
        assert isinstance((await collect(supervisor, job, edit()))[-1], Done)
        assert supervisor.state.restarts == 0


async def test_who_unloads_last_is_right(tmp_path: Path) -> None:
    """An engine is wanted from the call on: an unload before the first wait sticks."""
    async with supervised(tmp_path) as supervisor, asyncio.TaskGroup() as tasks:
        await supervisor.ready()
        wanted = supervisor.ready()
        supervisor.unload()
        waiting = tasks.create_task(wanted)
        await until(supervisor, "unloaded")
        assert not waiting.done()
        waiting.cancel()


async def test_unloading_waits_for_the_edit(tmp_path: Path, job: str) -> None:
    """A running edit is finished before its engine goes."""
    async with supervised(tmp_path, step_s=0.05) as supervisor:
        await supervisor.ready()
        frames = []
        async for frame in supervisor.edit(job, edit(steps=6)):
            supervisor.unload()
            frames.append(frame)
        assert isinstance(frames[-1], Done)
        await until(supervisor, "unloaded")
        supervisor.load()
        await until(supervisor, "ready")


async def test_an_idle_engine_is_unloaded(tmp_path: Path, job: str) -> None:
    """After idle_unload_s without an edit, counted from the last one's end."""
    async with supervised(tmp_path, idle_unload_s=1, step_s=0.4) as supervisor:
        await supervisor.ready()
        assert isinstance((await collect(supervisor, job, edit(steps=4)))[-1], Done)
        assert supervisor.state.state == "ready"
        await until(supervisor, "unloaded")
        assert not alive(supervisor.process_id)


async def test_three_deaths_open_the_circuit(tmp_path: Path, job: str) -> None:
    """The third death in a row is `failed` with a reason; an answered probe closes it again,
    and a finished edit has the pauses begin anew."""
    circuit = Circuit(restart_s=(0.0,), probe_s=(0.5, 600.0))
    seen: list[EngineState] = []
    async with supervised(tmp_path, circuit=circuit) as supervisor:
        supervisor._on_state = seen.append
        for _ in range(3):
            assert not circuit.open
            await supervisor.ready()
            with pytest.raises(EngineDiedError):
                await collect(supervisor, job, edit("crash"))
            assert not supervisor.state.ready
        await supervisor.ready()
        failed = [state for state in seen if state.state == "failed"]
        assert failed[0].restarts == 3 and failed[0].reason and not failed[0].ready
        assert not circuit.open
        assert isinstance((await collect(supervisor, job, edit()))[-1], Done)
        assert circuit.died(hopeless=True) == 0.5


async def test_a_missing_model_opens_the_circuit_at_once(tmp_path: Path) -> None:
    """It is tried again after the pause, and at once when somebody says that it is mended."""
    circuit = Circuit(probe_s=(600.0,))
    async with supervised(tmp_path, circuit=circuit, load_error="model_missing") as supervisor:
        await until(supervisor, "failed")
        async with asyncio.timeout(20):
            while not circuit.open:
                await asyncio.sleep(0.01)
            supervisor.load()
            while supervisor.state.restarts < 2:
                await asyncio.sleep(0.01)
        assert "paper is missing" in supervisor.state.reason


async def test_a_broken_engine_is_not_ready_for_being_unloaded(tmp_path: Path) -> None:
    """Unloaded means that a job loads it, and this one cannot be loaded: it stays `failed`."""
    circuit = Circuit(probe_s=(600.0,))
    async with supervised(tmp_path, circuit=circuit, load_error="model_missing") as supervisor:
        async with asyncio.timeout(20):
            while not circuit.open:
                await asyncio.sleep(0.01)
        supervisor.unload()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.3):
                await until(supervisor, "unloaded")
        assert supervisor.state.state == "failed" and not supervisor.state.ready
        assert "paper is missing" in supervisor.state.reason


async def test_the_circuit_counts_what_lies_between() -> None:
    """Probes and jobs end a row of deaths; only a job shortens the pauses again."""
    circuit = Circuit(restart_s=(0, 1), probe_s=(5, 15, 60))
    assert [circuit.died(), circuit.died()] == [0, 1]
    circuit.answered()
    assert [circuit.died(), circuit.died(), circuit.died()] == [0, 1, 5]
    assert circuit.open and circuit.died() == 15
    circuit.answered()
    assert not circuit.open
    assert [circuit.died(), circuit.died(), circuit.died(), circuit.died()] == [0, 1, 60, 60]
    circuit.worked()
    assert [circuit.died(), circuit.died(), circuit.died()] == [0, 1, 5]


@pytest.mark.parametrize(
    ("prompt", "kind"), [("memory", errors.OutOfMemory), ("black", errors.BadOutput)]
)
async def test_two_suspect_failures_in_a_row_restart_the_engine(
    tmp_path: Path, job: str, prompt: str, kind: type[errors.VellumError]
) -> None:
    """A success between them clears the first one; a restart is no death."""
    circuit = Circuit()
    async with supervised(tmp_path, circuit=circuit) as supervisor:
        await supervisor.ready()
        first = supervisor.process_id
        for wanted in (prompt, "fine", prompt):
            with failing(kind) if wanted == prompt else nullcontext():
                await collect(supervisor, job, edit(wanted))
        assert supervisor.process_id == first and supervisor.state.ready
        with failing(kind):
            await collect(supervisor, job, edit(prompt))
        assert supervisor.state.state == "restarting"
        await supervisor.ready()
        assert supervisor.process_id != first and supervisor.state.restarts == 1
        assert circuit.died() == 0
        assert isinstance((await collect(supervisor, job, edit()))[-1], Done)


async def test_a_lost_cuda_context_ends_the_engine(tmp_path: Path, job: str) -> None:
    """The edit is not answered but repeated by a new process."""
    async with supervised(tmp_path) as supervisor:
        await supervisor.ready()
        with pytest.raises(EngineDiedError):
            await collect(supervisor, job, edit("sticky"))
        await supervisor.ready()
        assert isinstance((await collect(supervisor, job, edit()))[-1], Done)


async def test_an_edit_does_not_wait_for_the_warm_up(tmp_path: Path, job: str) -> None:
    """Ready from the load on, warming told; the first edit breaks in and says that it is the
    first, the second does not; the warm-up ends later and tells its seconds."""
    async with supervised(tmp_path, warm_up_s=1.5) as supervisor:
        await supervisor.ready()
        async with asyncio.timeout(1):
            while supervisor.state.phase != "warm up":
                await asyncio.sleep(0.01)
        assert supervisor.state.ready and supervisor.state.warming
        async with asyncio.timeout(1):
            first = (await collect(supervisor, job, edit()))[-1]
            second = (await collect(supervisor, job, edit()))[-1]
        assert [notice.code for notice in first.warnings] == ["engine_cold"]
        assert second.warnings == () and supervisor.state.warming
        async with asyncio.timeout(20):
            while supervisor.state.warming:
                await asyncio.sleep(0.02)
        assert supervisor.state.warm_up_s is not None and supervisor.state.warm_up_s >= 1.5
        assert supervisor.state.phase == "idle" and supervisor.state.restarts == 0


async def test_silence_while_warming_up_is_no_hang(tmp_path: Path) -> None:
    """Compiling says nothing: only the patience of a load counts."""
    async with supervised(tmp_path, stall_s=0.4, warm_up_s=1.2) as supervisor:
        await supervisor.ready()
        async with asyncio.timeout(20):
            while supervisor.state.warm_up_s is None:
                await asyncio.sleep(0.02)
        assert supervisor.state.restarts == 0


async def test_who_dies_of_warming_up_is_spared_it(tmp_path: Path, job: str) -> None:
    """The next process does without, and is ready for good; its first edit is told apart."""
    async with supervised(tmp_path, warm_up_dies=True) as supervisor:
        async with asyncio.timeout(20):
            while supervisor.state.restarts < 1:
                await asyncio.sleep(0.02)
        await supervisor.ready()
        done = (await collect(supervisor, job, edit()))[-1]
        assert [notice.code for notice in done.warnings] == ["engine_cold"]
        assert supervisor.state.restarts == 1 and not supervisor.state.warming


async def test_who_was_unloaded_while_warming_up_did_not_die_of_it(tmp_path: Path) -> None:
    """Nor did the next process, whose start was ended before it said a word."""
    async with supervised(tmp_path, warm_up_s=60) as supervisor:
        await supervisor.ready()
        async with asyncio.timeout(20):
            while supervisor.state.phase != "warm up":
                await asyncio.sleep(0.01)
            first = supervisor.process_id
            supervisor.unload()
            await until(supervisor, "unloaded")
            assert not supervisor.state.warming and supervisor.state.phase == "idle"
            supervisor.load()
            while supervisor.process_id == first:
                await asyncio.sleep(0)
            os.kill(supervisor.process_id, signal.SIGKILL)
            while supervisor.state.restarts < 1:
                await asyncio.sleep(0.01)
            await supervisor.ready()
        assert supervisor.state.restarts == 1 and supervisor.state.warming
