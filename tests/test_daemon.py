"""The daemon: accepted means kept, whatever dies; one edit at a time, in order."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sqlite3
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, aclosing, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from pydantic import BaseModel

from vellumd import errors, plugins
from vellumd.context import REPORT_MAX, TransportContext
from vellumd.daemon import Daemon, LockedStoreError
from vellumd.hookspecs import TransportSpec
from vellumd.models import EditRequest, Job, JobEvent, JobStatus, new_job_id
from vellumd.settings import Settings
from vellumd.store import schema
from vellumd.store.spool import UnusableStoreError, sha256_of

Run = Callable[..., AbstractAsyncContextManager[Daemon]]
Picture = Callable[..., bytes]


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who waits for another program's lock on the store does so for moments only."""
    monkeypatch.setattr(schema, "BUSY_S", 0.1)
    monkeypatch.setattr("vellumd.executor.STORE_RETRY_S", 0.1)
    monkeypatch.setattr("vellumd.executor.PUT_BACK_S", 0.5)
    monkeypatch.setattr("vellumd.daemon.STORE_RETRY_S", 0.1)


async def submit(daemon: Daemon, picture: bytes, prompt: str = "invert", **fields: Any) -> Job:
    keywords = {name: fields.pop(name) for name in ("key", "job_id", "reply") if name in fields}
    image = await daemon.jobs.staging.put(picture, "photo.png")
    request = EditRequest.parse({"images": [image], "prompt": prompt, **fields})
    return await daemon.jobs.submit(request, "test", **keywords)


async def finish(daemon: Daemon, job: Job, seconds: float = 30) -> Job:
    job = await daemon.jobs.wait(job.id, seconds)
    assert job.status.terminal, f"still {job.status} after {seconds} s"
    return job


async def test_a_picture_goes_in_and_an_edit_comes_out(run_daemon: Run, picture: Picture) -> None:
    """The result has the picture's size and hash; the job says all that was asked and done."""
    async with run_daemon() as daemon:
        job = await finish(daemon, await submit(daemon, picture(), seed=7, meta={"a": 1}))
        assert job.status is JobStatus.DONE and job.meta == {"a": 1}
        (result,) = job.results
        assert (result.width, result.height, result.seed) == (64, 48, 7)
        assert sha256_of(await daemon.jobs.result(job.id, 1)) == result.sha256
        assert job.request and job.request.preset == "fastest" and job.request.steps == 8


async def test_jobs_run_one_at_a_time_in_order(
    run_daemon: Run, picture: Picture, ledger: Callable[[], list[str]]
) -> None:
    """Ten jobs are executed in the order in which they were accepted, each once."""
    async with run_daemon() as daemon:
        jobs = [await submit(daemon, picture(k)) for k in range(10)]
        for job in jobs:
            assert (await finish(daemon, job)).status is JobStatus.DONE
        assert ledger() == [job.id for job in jobs]


async def test_one_key_one_job(run_daemon: Run, picture: Picture) -> None:
    """Twenty equal requests at once under one key, or one id, are one job and one folder."""
    async with run_daemon(paper={"step_s": 0.01}) as daemon:
        by_key = await asyncio.gather(*(submit(daemon, picture(), key="k") for _ in range(20)))
        assert len({job.id for job in by_key}) == 1
        job_id = new_job_id()
        by_id = await asyncio.gather(*(submit(daemon, picture(), job_id=job_id) for _ in range(20)))
        assert {job.id for job in by_id} == {job_id}
        with pytest.raises(errors.IdempotencyMismatch):
            await submit(daemon, picture(), "another", key="k")
        folders = {f.name for f in (daemon.settings.store.dir / "spool").iterdir()} - {"staged"}
        assert folders == {by_key[0].id, job_id}


async def test_cancel_wherever_it_is(run_daemon: Run, picture: Picture) -> None:
    """Queued, running or ended: cancel gives one terminal state, and the engine goes on."""
    async with run_daemon(paper={"step_s": 0.05}) as daemon:
        running = await submit(daemon, picture(1), steps=100)
        waiting = await submit(daemon, picture(2))
        last = await submit(daemon, picture(3), steps=1)
        async for event in daemon.jobs.events(running.id, 0, previews=False):
            if event.type == "step":
                break
        assert (await daemon.jobs.cancel(waiting.id)).status is JobStatus.CANCELLED
        await daemon.jobs.cancel(running.id)
        assert (await finish(daemon, running)).status is JobStatus.CANCELLED
        assert (await finish(daemon, last)).status is JobStatus.DONE
        assert (await daemon.jobs.cancel(last.id)).status is JobStatus.DONE
        with pytest.raises(errors.Cancelled):
            await daemon.jobs.result(running.id, 1)


async def test_an_engine_death_costs_one_more_run(
    run_daemon: Run, picture: Picture, ledger: Callable[[], list[str]]
) -> None:
    """Killed in mid-edit, the engine comes back and the job runs once more, first."""
    async with run_daemon(paper={"step_s": 0.03}) as daemon:
        job, later = await submit(daemon, picture(1)), await submit(daemon, picture(2))
        async for event in daemon.jobs.events(job.id, 0, previews=False):
            if event.type == "step":
                os.kill(daemon.supervisor.process_id, signal.SIGKILL)
                break
        ended = await finish(daemon, job)
        assert ended.status is JobStatus.DONE and ended.attempt == 2
        assert (await finish(daemon, later)).attempt == 1
        assert ledger() == [job.id, job.id, later.id]


async def test_a_job_that_kills_twice_fails(run_daemon: Run, picture: Picture) -> None:
    """Poison ends as engine_crashed after two deaths; the next job is done."""
    async with run_daemon() as daemon:
        poison = await submit(daemon, picture(1), "crash")
        healthy = await submit(daemon, picture(2))
        ended = await finish(daemon, poison)
        assert ended.error and ended.error.code == "engine_crashed" and ended.attempt == 2
        assert (await finish(daemon, healthy)).status is JobStatus.DONE


async def test_a_stop_gives_the_running_job_its_time(run_daemon: Run, picture: Picture) -> None:
    """Stopping lets a job finish within stop_s, and refuses new ones."""
    async with run_daemon(paper={"step_s": 0.05}) as daemon:
        job = await submit(daemon, picture(), steps=6)
        async for event in daemon.jobs.events(job.id, 0, previews=False):
            if event.type == "step":
                break
        daemon.stop()
        assert (await finish(daemon, job)).status is JobStatus.DONE
        with pytest.raises(errors.EngineUnavailable):
            await submit(daemon, picture(2))


async def test_a_stop_puts_a_long_job_back(
    make_settings: Callable[..., Any], picture: Picture
) -> None:
    """What does not finish within stop_s is queued, not failed, and done by the next daemon."""
    slow = make_settings(paper={"step_s": 0.2}, daemon={"stop_s": 0.3})
    async with Daemon(slow).running() as daemon:
        job = await submit(daemon, picture(), steps=50)
        waiting = await submit(daemon, picture(2), steps=1)
        async for event in daemon.jobs.events(job.id, 0, previews=False):
            if event.type == "step":
                break
    async with Daemon(make_settings()).running() as daemon:
        ended = await finish(daemon, job)
        assert ended.status is JobStatus.DONE and ended.attempt == 2
        assert (await finish(daemon, waiting)).status is JobStatus.DONE


async def test_a_finished_result_is_adopted(
    make_settings: Callable[..., Any], picture: Picture, ledger: Callable[[], list[str]]
) -> None:
    """Died between result.json and `done`: the next daemon takes the files, no engine runs.

    With a damaged file it is run again instead.
    """
    async with Daemon(make_settings()).running() as daemon:
        jobs = [await finish(daemon, await submit(daemon, picture(k))) for k in range(2)]
    forget_end(make_settings().store.dir / "jobs.sqlite")
    damaged = make_settings().store.dir / "spool" / jobs[1].id / jobs[1].results[0].file
    damaged.write_bytes(b"zero")
    async with Daemon(make_settings()).running() as daemon:
        again = [await finish(daemon, job) for job in jobs]
        assert [job.results for job in again] == [job.results for job in jobs]
        assert ledger() == [jobs[0].id, jobs[1].id, jobs[1].id]


def forget_end(database: Path) -> None:
    """Set all jobs back to running, as a daemon that died just before its commit left them."""

    connection = schema.connect(database)
    trigger = "SELECT sql FROM sqlite_master WHERE name = 'terminal_absorbs'"
    (absorbs,) = connection.execute(trigger).fetchone()
    connection.execute("DROP TRIGGER terminal_absorbs")
    connection.execute("UPDATE jobs SET status = 'running'")
    connection.execute(absorbs)
    connection.close()


async def test_strays_are_swept(make_settings: Callable[..., Any], picture: Picture) -> None:
    """A folder whose job was never accepted is gone after the next start; jobs' folders stay."""
    async with Daemon(make_settings()).running() as daemon:
        job = await finish(daemon, await submit(daemon, picture()))
    spool = make_settings().store.dir / "spool"
    (spool / new_job_id()).mkdir()
    (spool / "staged" / ".x.part").write_bytes(b"half")
    async with Daemon(make_settings()).running() as daemon:
        assert {entry.name for entry in spool.iterdir()} == {"staged", job.id}
        assert not list((spool / "staged").glob(".*"))


async def test_two_daemons_do_not_share_a_folder(run_daemon: Run) -> None:
    """The second one refuses to start and touches nothing, whatever files somebody removed."""
    async with run_daemon() as daemon:
        for file in daemon.settings.store.dir.glob("*.lock"):
            file.unlink()
        with pytest.raises(ExceptionGroup) as caught:
            async with run_daemon():
                pass
        assert caught.group_contains(LockedStoreError)


async def test_a_daemon_that_cannot_announce_itself_serves(
    make_settings: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    """Its doors stay open; the log says what commands on this machine need now."""
    settings = make_settings(http={})
    (settings.store.dir / "daemon.json").mkdir(parents=True)
    async with Daemon(settings).running() as daemon:
        assert daemon.transports.doors["http"].ok and daemon.urls
    assert "commands here need --url" in caplog.text


@pytest.mark.parametrize("own", [True, False])
async def test_only_its_own_address_is_taken_back(run_daemon: Run, own: bool) -> None:
    """A daemon that ends leaves alone what another one announced."""
    async with run_daemon() as daemon:
        file = daemon.settings.store.dir / "daemon.json"
        file.write_text(json.dumps({"pid": os.getpid() + (not own), "url": "http://x"}))
    assert file.exists() != own


async def test_events_resume_without_gap_or_repeat(run_daemon: Run, picture: Picture) -> None:
    """Reading in pieces, each from the last seq on, gives every durable event once."""
    async with run_daemon() as daemon:
        jobs = [await submit(daemon, picture(k)) for k in range(5)]
        seen: list[int] = []
        while len(seen) < 15:
            async for event in daemon.jobs.events(None, seen[-1] if seen else 0, previews=False):
                if event.seq:
                    seen.append(event.seq)
                    break
        assert seen == list(range(1, 16))
        assert [(await daemon.jobs.get(job.id)).status for job in jobs] == [JobStatus.DONE] * 5


async def test_what_is_not_confirmed_hides_nothing(
    run_daemon: Run, picture: Picture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many deliveries are out and never settled, the next one is offered."""
    monkeypatch.setattr("vellumd.deliveries.PAGE", 2)
    async with run_daemon() as daemon:
        jobs = [await submit(daemon, picture(k), reply={"to": k}) for k in range(6)]
        for job in jobs:
            await finish(daemon, job)
        async with asyncio.timeout(20), aclosing(daemon.jobs.deliveries.of("test")) as owed:
            offered = [(await anext(owed)).job.id for _ in jobs]
        assert offered == [job.id for job in jobs]


async def test_a_delivery_is_offered_until_settled(
    make_settings: Callable[..., Any], picture: Picture
) -> None:
    """Put off it comes again; unsettled at a restart it comes again; delivered it does not."""
    async with Daemon(make_settings()).running() as daemon:
        job = await submit(daemon, picture(), reply={"to": "me"})
        deliveries = daemon.jobs.deliveries.of("test")
        first = await anext(deliveries)
        assert first.job.id == job.id and first.reply == {"to": "me"}
        assert first.job.status is JobStatus.DONE
        await first.retry(0.05)
        await anext(deliveries)
    async with Daemon(make_settings()).running() as daemon:
        deliveries = daemon.jobs.deliveries.of("test")
        async with asyncio.timeout(20):
            again = await anext(deliveries)
        await again.delivered()
        assert again.job.id == job.id
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                await anext(deliveries)


async def test_a_retry_repeats_exactly(run_daemon: Run, picture: Picture) -> None:
    """A retried job is a new one with the same seed, inputs and result, tied to the first."""
    async with run_daemon() as daemon:
        first = await finish(daemon, await submit(daemon, picture(), batch="b"))
        again = await finish(daemon, await daemon.jobs.retry(first.id, "test"))
        assert again.id != first.id and again.retry_of == first.id and again.batch == "b"
        assert again.request == first.request
        with (
            Image.open(await daemon.jobs.result(first.id, 1)) as one,
            Image.open(await daemon.jobs.result(again.id, 1)) as two,
        ):
            assert one.tobytes() == two.tobytes()
        await daemon.jobs.delete(first.id)
        with pytest.raises(errors.NotFound):
            await daemon.jobs.get(first.id)
        third = await finish(daemon, await daemon.jobs.retry(again.id, "test"))
        assert third.status is JobStatus.DONE


async def test_no_model_keeps_intake_open(run_daemon: Run, picture: Picture) -> None:
    """Without a model jobs are accepted and wait; the state says why nothing runs."""
    async with run_daemon(
        paper={"load_error": "model_missing"}, engine={"model": "not/there", "preset": "original"}
    ) as daemon:
        job = await submit(daemon, picture())
        async with asyncio.timeout(20):
            while daemon.supervisor.state.state != "failed":
                await asyncio.sleep(0.02)
        assert (await daemon.jobs.get(job.id)).status is JobStatus.QUEUED
        info = daemon.info()["engine"]
        assert not info["ready"] and "paper is missing" in info["reason"]


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"prompt": " "}, "bad_request"),
        ({"prompt": "x" * 100_000}, "bad_request"),
        ({"steps": 0}, "bad_request"),
        ({"steps": 10_000}, "bad_request"),
        ({"true_cfg_scale": -1}, "bad_request"),
        ({"true_cfg_scale": float("nan")}, "bad_request"),
        ({"seed": 2**63}, "bad_request"),
        ({"n": 5}, "bad_request"),
        ({"meta": "x" * 5000}, "bad_request"),
        ({"images": []}, "too_many_images"),
        ({"size": "12x12"}, "bad_size"),
        ({"size": "huge"}, "bad_size"),
        ({"preset": "nope"}, "unknown_preset"),
        ({"loras": [{"name": "nope"}]}, "unknown_lora"),
        ({"loras": [{"name": "../x"}]}, "bad_request"),
        ({"tier": "warp"}, "unknown_tier"),
        ({"tier": "reference"}, "unknown_tier"),
        ({"wobble": 1}, "bad_request"),
        ({"job_id": "../spool"}, "bad_request"),
    ],
)
async def test_a_wrong_request_is_refused_by_code(
    run_daemon: Run, picture: Picture, fields: dict[str, Any], code: str
) -> None:
    """It never becomes a job, and the error names the field or the remedy."""
    async with run_daemon() as daemon:
        with pytest.raises(errors.VellumError) as caught:
            await submit(daemon, picture(), **fields)
        assert caught.value.code == code
        assert daemon.jobs.queue()["queued"] == 0


@pytest.mark.usefixtures("impatient")
async def test_a_locked_store_delays_and_loses_nothing(
    run_daemon: Run, picture: Picture, caplog: pytest.LogCaptureFixture
) -> None:
    """While another program locks the database intake says so; then all goes on."""
    async with run_daemon(paper={"step_s": 0.02}) as daemon:
        running = await submit(daemon, picture(1), steps=20)
        async for event in daemon.jobs.events(running.id, 0, previews=False):
            if event.type == "step":
                break
        rude = sqlite3.connect(daemon.settings.store.dir / "jobs.sqlite", isolation_level=None)
        rude.execute("BEGIN EXCLUSIVE")
        while "the queue waits" not in caplog.text:  # the edit has ended and cannot be noted
            with pytest.raises(errors.EngineUnavailable):
                await submit(daemon, picture(2))
        rude.execute("ROLLBACK")
        rude.close()
        accepted = await submit(daemon, picture(3), steps=1)
        for job in (running, accepted):
            assert (await finish(daemon, job)).status is JobStatus.DONE


async def test_a_retry_outlives_its_preset(
    make_settings: Callable[..., Any], picture: Picture
) -> None:
    """A job made by a preset that is gone is repeated as it was."""
    async with Daemon(make_settings(presets={"mine": {"steps": 3}})).running() as daemon:
        first = await finish(daemon, await submit(daemon, picture(), preset="mine"))
    async with Daemon(make_settings()).running() as daemon:
        again = await finish(daemon, await daemon.jobs.retry(first.id, "test"))
        assert again.request and again.request.steps == 3 and again.status is JobStatus.DONE


@pytest.mark.usefixtures("impatient")
async def test_a_stop_does_not_wait_for_a_locked_store(
    run_daemon: Run, picture: Picture, ledger: Callable[[], list[str]]
) -> None:
    """A job that cannot be put back is found running by the next daemon, and then done."""
    async with asyncio.timeout(30):
        async with run_daemon(paper={"step_s": 0.05}, daemon={"stop_s": 0.1}) as daemon:
            job = await submit(daemon, picture(), steps=100)
            async for event in daemon.jobs.events(job.id, 0, previews=False):
                if event.type == "step":
                    break
            rude = sqlite3.connect(daemon.settings.store.dir / "jobs.sqlite", isolation_level=None)
            rude.execute("BEGIN EXCLUSIVE")
        rude.execute("ROLLBACK")
        rude.close()
        async with run_daemon() as daemon:
            assert (await finish(daemon, job)).status is JobStatus.DONE
    assert ledger() == [job.id] * 2


async def test_a_store_that_cannot_be_opened(
    make_settings: Callable[..., Any], tmp_path: Path
) -> None:
    """A wrong folder refuses the start as configuration errors do."""
    folder = tmp_path / "data"
    folder.write_bytes(b"")
    with pytest.raises(errors.ConfigError, match=r"store\.dir"):
        await Daemon(make_settings(store={"dir": folder})).run()


async def test_a_stop_before_the_doors_are_open(make_settings: Callable[..., Any]) -> None:
    """A daemon that is told to end while it starts ends as any other does."""
    daemon = Daemon(make_settings())
    daemon.stop()
    async with daemon.running():
        assert daemon.stopping


async def test_a_spool_that_cannot_be_made(
    make_settings: Callable[..., Any], tmp_path: Path
) -> None:
    """A file in its place is told in words, and no wrong configuration: a disk may be it too."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data/spool").write_bytes(b"")
    with pytest.raises(UnusableStoreError, match="spool"):
        await Daemon(make_settings()).run()


class NoSettings(BaseModel):
    """A section without keys."""


class Stubborn:
    """A door that crashes on its first run, and needs `cancels` to end its second."""

    def __init__(self, cancels: int = 1) -> None:
        self.runs = 0
        self.cancels = cancels

    def spec(self) -> TransportSpec:
        return TransportSpec("stubborn", NoSettings, self.open)

    def open(self, context: TransportContext) -> Stubborn:
        self.context = context
        return self

    async def run(self) -> None:
        self.runs += 1
        if self.runs == 1:
            raise ValueError("no paper")
        self.context.report(True, "open")
        while self.cancels:
            with suppress(asyncio.CancelledError):
                await asyncio.Event().wait()
            self.cancels -= 1


def with_door(settings: Settings, door: Stubborn) -> Daemon:
    found = plugins.load(settings.enabled_plugins())
    return Daemon(settings, replace(found, transports={"stubborn": door.spec()}))


@pytest.mark.parametrize("steady_s", [300, 0], ids=["early", "after a long good run"])
async def test_a_crashed_transport_is_opened_again(
    make_settings: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    steady_s: float,
) -> None:
    """Its crash is told and harms nobody; the first one in a row costs a second."""
    monkeypatch.setattr("vellumd.transports.STEADY_S", steady_s)
    door = Stubborn()
    async with with_door(make_settings(), door).running() as daemon:
        assert "it crashed (ValueError); opened again in 1 s" in caplog.text
        async with asyncio.timeout(20):
            while not daemon.transports.doors["stubborn"].ok:
                await asyncio.sleep(0.05)
        assert door.runs == 2
        door.context.report(False, "x" * 10_000)
        assert len(daemon.transports.doors["stubborn"].text) == REPORT_MAX


async def test_a_transport_that_swallows_its_end(
    make_settings: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The stop goes on when a door returns instead of being cancelled, and asks it again."""
    monkeypatch.setattr("vellumd.transports.CLEANUP_S", 0.2)
    door = Stubborn(cancels=2)
    door.runs = 1
    async with asyncio.timeout(10):
        async with with_door(make_settings(), door).running():
            pass
    assert (door.runs, door.cancels) == (2, 0)


async def test_a_transport_that_never_ends_is_left(
    make_settings: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The daemon ends in order all the same, its folder free, and says who is left."""
    monkeypatch.setattr("vellumd.transports.CLEANUP_S", 0.1)
    door = Stubborn(cancels=3)
    door.runs = 1
    async with asyncio.timeout(10):
        async with with_door(make_settings(), door).running() as daemon:
            pass
        assert daemon.transports.stuck == ["transport stubborn"]
        async with Daemon(make_settings()).running():
            pass


@pytest.mark.usefixtures("impatient")
async def test_a_locked_store_costs_no_observer_an_event(
    make_settings: Callable[..., Any], picture: Picture, caplog: pytest.LogCaptureFixture
) -> None:
    """Observers are told all that happened, late if they must, and the daemon lives."""
    heard: list[str] = []
    settings = make_settings()
    found = plugins.load(settings.enabled_plugins())
    observer = ("ear", lambda job, event: heard.append(f"{event.type} {job.status}"))
    file = settings.store.dir / "jobs.sqlite"
    async with Daemon(settings, replace(found, observers=(observer,))).running() as daemon:
        rude = sqlite3.connect(file, isolation_level=None)

        def lock(event: JobEvent) -> None:
            if event.type == "done":
                rude.execute("BEGIN EXCLUSIVE")

        daemon.bus.observers.append(lock)
        job = await submit(daemon, picture(), steps=1)
        with pytest.raises(errors.EngineUnavailable):
            await finish(daemon, job)
        async with asyncio.timeout(10):
            while "the observers wait" not in caplog.text:
                await asyncio.sleep(0.02)
        rude.execute("ROLLBACK")
        rude.close()
        async with asyncio.timeout(10):
            while len(heard) < 3:
                await asyncio.sleep(0.05)
    assert [line.split()[0] for line in heard] == ["queued", "started", "done"]


async def test_a_picture_that_cannot_be_read_leaves_nothing(
    run_daemon: Run, tmp_path: Path
) -> None:
    """A file that is gone is told by a coded error, and no half upload stays on the disk."""
    async with run_daemon() as daemon:
        with pytest.raises(errors.VellumError):
            await daemon.jobs.staging.put(tmp_path / "gone.png", "gone.png")
        assert list((daemon.settings.store.dir / "spool" / "staged").iterdir()) == []
