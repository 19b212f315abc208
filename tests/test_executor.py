"""The lane: held and let go on request, by a full disk; its engine unloaded and loaded."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import pytest

from vellumd.daemon import Daemon
from vellumd.models import EditRequest, Job, JobStatus

Run = Callable[..., AbstractAsyncContextManager[Daemon]]
Picture = Callable[..., bytes]
Ledger = Callable[[], list[str]]


async def submit(daemon: Daemon, picture: bytes, prompt: str = "invert", **fields: Any) -> Job:
    image = await daemon.jobs.staging.put(picture, "photo.png")
    request = EditRequest.parse({"images": [image], "prompt": prompt, **fields})
    return await daemon.jobs.submit(request, "test")


async def finish(daemon: Daemon, job: Job, seconds: float = 30) -> Job:
    job = await daemon.jobs.wait(job.id, seconds)
    assert job.status.terminal, f"still {job.status} after {seconds} s"
    return job


async def until(told: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not told():
            await asyncio.sleep(0.01)


async def first_step(daemon: Daemon, job: Job) -> None:
    async for event in daemon.jobs.events(job.id, 0, previews=False):
        if event.type == "step":
            return


async def test_an_executor_waits_for_its_own_lane(run_daemon: Run, picture: Picture) -> None:
    """A job of another lane is none of its business, whenever that one came."""
    async with run_daemon() as daemon:
        await daemon.executor.pause()
        await submit(daemon, picture())
        await daemon.jobs.queued(0)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.3):
                await daemon.jobs.queued(1)


async def test_a_pause_holds_what_waits_and_not_what_runs(
    run_daemon: Run, picture: Picture, ledger: Ledger, tmp_path: Path
) -> None:
    """The running job ends as ever, no other begins until resumed; accepting goes on."""
    async with run_daemon() as daemon:
        running = await submit(daemon, picture(1), "wait")
        waiting = await submit(daemon, picture(2), steps=1)
        await first_step(daemon, running)
        await daemon.executor.pause()
        (tmp_path / "go").touch()
        assert (await finish(daemon, running)).status is JobStatus.DONE
        late = await submit(daemon, picture(3), steps=1)
        assert daemon.info()["queue"] == {"queued": 2, "running": 0, "held": "paused"}
        assert daemon.info()["engine"]["ready"]
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.3):
                await daemon.jobs.wait(waiting.id, 60)
        assert ledger() == [running.id]
        await daemon.executor.resume()
        for job in (waiting, late):
            assert (await finish(daemon, job)).status is JobStatus.DONE
        assert daemon.info()["queue"]["held"] == ""


async def test_a_pause_outlives_the_daemon(
    make_settings: Callable[..., Any], picture: Picture, ledger: Ledger
) -> None:
    """Who paused for maintenance finds the queue paused after the restart."""
    async with Daemon(make_settings()).running() as daemon:
        await daemon.executor.pause()
        job = await submit(daemon, picture())
    async with Daemon(make_settings()).running() as daemon:
        await daemon.supervisor.ready()
        assert daemon.info()["queue"]["held"] == "paused"
        assert ledger() == []
        await daemon.executor.resume()
        assert (await finish(daemon, job)).status is JobStatus.DONE
    async with Daemon(make_settings()).running() as daemon:
        assert (await finish(daemon, await submit(daemon, picture(2)))).status is JobStatus.DONE


async def test_the_next_job_loads_an_unloaded_engine(run_daemon: Run, picture: Picture) -> None:
    """Nothing but its first attempt is counted, although it had to wait for the engine."""
    async with run_daemon() as daemon:
        await daemon.supervisor.ready()
        await daemon.executor.unload()
        await until(lambda: daemon.supervisor.state.state == "unloaded")
        ended = await finish(daemon, await submit(daemon, picture()))
        assert ended.status is JobStatus.DONE and ended.attempt == 1


async def test_a_paused_queue_does_not_load_the_engine(run_daemon: Run, picture: Picture) -> None:
    """Paused and unloaded, the card stays free whatever waits, until resumed or loaded."""
    async with run_daemon(paper={"load_s": 0.1}) as daemon:
        await daemon.supervisor.ready()
        await daemon.executor.pause()
        job = await submit(daemon, picture())
        await daemon.executor.unload()
        await until(lambda: daemon.supervisor.state.state == "unloaded")
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.3):
                await until(lambda: daemon.supervisor.state.state != "unloaded")
        await daemon.executor.load()
        await until(lambda: daemon.supervisor.state.loaded)
        assert (await daemon.jobs.get(job.id)).status is JobStatus.QUEUED
        await daemon.executor.resume()
        assert (await finish(daemon, job)).status is JobStatus.DONE


async def test_a_pause_takes_the_engine_from_who_waits_for_it(
    run_daemon: Run, picture: Picture
) -> None:
    """Paused while a job waits for a loading engine, unloading sticks."""
    async with run_daemon(paper={"load_s": 1.0}) as daemon:
        job = await submit(daemon, picture())
        await daemon.executor.pause()
        await daemon.executor.unload()
        await until(lambda: daemon.supervisor.state.state == "unloaded")
        assert (await daemon.jobs.get(job.id)).status is JobStatus.QUEUED
        await daemon.executor.resume()
        assert (await finish(daemon, job)).status is JobStatus.DONE


async def test_an_idle_engine_goes_and_comes_back(run_daemon: Run, picture: Picture) -> None:
    """engine.idle_unload_s after the last edit; the next job has it loaded."""
    async with run_daemon(engine={"idle_unload_s": 0.3}) as daemon:
        for tone in (1, 2):
            job = await finish(daemon, await submit(daemon, picture(tone)))
            assert job.status is JobStatus.DONE and job.attempt == 1
            await until(lambda: daemon.supervisor.state.state == "unloaded")
        assert daemon.info()["engine"]["ready"] and not daemon.info()["engine"]["loaded"]


async def test_a_full_disk_holds_the_queue_until_there_is_room(
    run_daemon: Run, picture: Picture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The job whose result found no room waits without an attempt, and is done once there
    is some; the queue says why it stands, and goes on by itself."""
    monkeypatch.setattr("vellumd.executor.ROOM_S", 0.05)
    full = tmp_path / "full"
    full.touch()
    async with run_daemon() as daemon:
        looked = 0

        def write(path: Path, data: bytes) -> None:
            nonlocal looked
            looked += 1
            if full.exists():
                raise OSError(28, "No space left on device")
            path.write_bytes(data)

        job = await submit(daemon, picture(1))
        following = await submit(daemon, picture(2))
        monkeypatch.setattr(daemon.jobs._spool, "_write", write)
        await until(lambda: looked > 2)
        assert daemon.info()["queue"] == {"queued": 2, "running": 0, "held": "storage_full"}
        waiting = await daemon.jobs.get(job.id)
        assert (waiting.attempt, waiting.position) == (0, 0)
        full.unlink()
        ended = await finish(daemon, job)
        assert ended.status is JobStatus.DONE and ended.attempt == 1
        assert (await finish(daemon, following)).status is JobStatus.DONE
        assert daemon.info()["queue"]["held"] == ""
        assert not list((daemon.settings.store.dir / "spool" / "staged").glob(".*"))


async def test_a_job_without_room_can_be_cancelled(
    run_daemon: Run, picture: Picture, tmp_path: Path
) -> None:
    """It is queued, so it ends at once."""
    (tmp_path / "full").touch()
    async with run_daemon() as daemon:
        job = await submit(daemon, picture())
        await until(lambda: daemon.executor.held == "storage_full")
        await until(lambda: daemon.jobs.queue()["queued"] == 1)
        assert (await daemon.jobs.cancel(job.id)).status is JobStatus.CANCELLED


async def test_a_result_without_room_does_not_repeat_for_ever(
    run_daemon: Run, picture: Picture, ledger: Ledger, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """A result too large for the room that there is ends its job; the next one is done."""
    monkeypatch.setattr("vellumd.executor.ROOM_S", 0.05)
    full = tmp_path / "full"
    full.touch()
    async with run_daemon() as daemon:  # whose own trial writes find room
        ended = await finish(daemon, job := await submit(daemon, picture(1)))
        assert ended.error and ended.error.code == "storage_full"
        assert ledger() == [job.id] * 3
        full.unlink()
        following = await finish(daemon, await submit(daemon, picture(2)))
        assert following.status is JobStatus.DONE


async def test_a_full_disk_under_the_engine_holds_nothing(
    run_daemon: Run, picture: Picture, ledger: Ledger
) -> None:
    """No room for a cache or a temporary file: that job fails at once, the next is done."""
    async with run_daemon() as daemon:
        job = await submit(daemon, picture(1), "scratch")
        following = await submit(daemon, picture(2))
        ended = await finish(daemon, job)
        assert ended.error and ended.error.code == "storage_full" and ended.attempt == 1
        assert (await finish(daemon, following)).status is JobStatus.DONE
        assert ledger() == [job.id, following.id]


async def test_a_drain_starts_no_engine(run_daemon: Run, picture: Picture) -> None:
    """The job that takes too long is put back, and no process takes over from the killed one."""
    states: list[str] = []
    async with run_daemon(paper={"step_s": 0.05}) as daemon:
        job = await submit(daemon, picture(), steps=100)
        await first_step(daemon, job)
        daemon.supervisor._on_state = lambda state: states.append(state.state)
        await daemon.executor.drain(0)
        assert (await daemon.jobs.get(job.id)).status is JobStatus.QUEUED
        await until(lambda: bool(states))
        assert states == ["unloaded"] and daemon.supervisor.state.restarts == 0


@pytest.mark.parametrize(("prompt", "code"), [("memory", "out_of_memory"), ("black", "bad_output")])
async def test_a_suspect_engine_is_replaced(
    run_daemon: Run, picture: Picture, ledger: Ledger, prompt: str, code: str
) -> None:
    """Two such failures in a row, each told and run once; the next job has a new engine."""
    async with run_daemon() as daemon:
        await daemon.supervisor.ready()
        first = daemon.supervisor.process_id
        jobs = [await submit(daemon, picture(k), prompt) for k in range(2)]
        healthy = await submit(daemon, picture(9))
        for job in jobs:
            ended = await finish(daemon, job)
            assert ended.error and ended.error.code == code and ended.attempt == 1
        assert (await finish(daemon, healthy)).status is JobStatus.DONE
        assert daemon.supervisor.process_id != first
        assert ledger() == [*(job.id for job in jobs), healthy.id]


async def test_one_poison_job_does_not_open_the_circuit(run_daemon: Run, picture: Picture) -> None:
    """It costs two restarts, and the next job is done while nothing was ever `failed`."""
    states: list[str] = []
    async with run_daemon() as daemon:
        seen = daemon.supervisor._on_state
        daemon.supervisor._on_state = lambda state: (states.append(state.state), seen(state))[1]
        poison = await submit(daemon, picture(1), "crash")
        healthy = await submit(daemon, picture(2))
        ended = await finish(daemon, poison)
        assert ended.error and ended.error.code == "engine_crashed"
        assert (await finish(daemon, healthy)).status is JobStatus.DONE
        assert daemon.supervisor.state.restarts == 2
    assert states.count("restarting") == 2 and "failed" not in states


async def test_a_lost_card_is_retried_in_a_fresh_process(
    run_daemon: Run, picture: Picture, ledger: Ledger
) -> None:
    """A CUDA error that sticks counts as a death: twice in one job ends it."""
    async with run_daemon() as daemon:
        job = await submit(daemon, picture(), "sticky")
        ended = await finish(daemon, job)
        assert ended.error and ended.error.code == "engine_crashed"
        assert ledger() == [job.id] * 2
