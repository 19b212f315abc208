"""The figures: they move with real jobs and say what is so."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import time
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from tests.test_daemon import finish, submit
from vellumd.daemon import Daemon
from vellumd.metrics import Metrics
from vellumd.models import JobEvent, moment, now_ms

Run = Callable[..., AbstractAsyncContextManager[Daemon]]
Picture = Callable[..., bytes]
Figures = dict[str, float]


def parse(text: bytes) -> Figures:
    """Every sample as `name{label="value"}` and its value."""
    figures = {}
    for family in text_string_to_metric_families(text.decode()):
        for sample in family.samples:
            labels = ",".join(f'{name}="{value}"' for name, value in sample.labels.items())
            figures[sample.name + (f"{{{labels}}}" if labels else "")] = sample.value
    return figures


async def read(daemon: Daemon) -> Figures:
    """The daemon's figures."""
    return parse(await daemon.metrics.text(daemon.info()))


def total(figures: Figures, name: str, **labels: str) -> float:
    """The sum of a figure over all labels but those given."""
    wanted = [f'{label}="{value}"' for label, value in labels.items()]
    return sum(
        value
        for key, value in figures.items()
        if key.partition("{")[0] == name and all(one in key for one in wanted)
    )


async def until(daemon: Daemon, name: str, value: float) -> None:
    """Wait until a figure has a value."""
    async with asyncio.timeout(20):
        while (await read(daemon))[name] != value:
            await asyncio.sleep(0.02)


async def test_figures_move_with_jobs(run_daemon: Run, picture: Picture) -> None:
    """Accepted, ended by status, waits, runs and steps are counted, each job once."""
    async with run_daemon(paper={"step_s": 0.02}) as daemon:
        before = await read(daemon)
        assert total(before, "vellumd_jobs_ended_total") == 0
        await finish(daemon, await submit(daemon, picture(1), steps=5))
        await finish(daemon, await submit(daemon, picture(2), "fail", steps=1))
        after = await read(daemon)
    assert after['vellumd_jobs_accepted_total{source="test"}'] == 2
    ended = {status: after.get(f'vellumd_jobs_ended_total{{source="test",status="{status}"}}', 0)
             for status in ("done", "failed", "cancelled")}  # fmt: skip
    assert ended == {"done": 1, "failed": 1, "cancelled": 0}
    assert after['vellumd_job_wait_seconds_count{source="test"}'] == 2
    assert after['vellumd_job_run_seconds_count{source="test"}'] == 2
    assert after["vellumd_step_seconds_count"] == 4
    assert after["vellumd_step_seconds_sum"] >= 0.08
    assert after["vellumd_step_seconds_sum"] <= total(after, "vellumd_job_run_seconds_sum")
    assert after["vellumd_store_used_bytes"] > before["vellumd_store_used_bytes"]
    assert after["vellumd_disk_free_bytes"] > after["vellumd_disk_reserve_bytes"] == 2e9


async def test_a_cold_job_is_counted_apart(run_daemon: Run, picture: Picture) -> None:
    """What the first edit takes says nothing of the others."""
    async with run_daemon(paper={"warm_up_s": 60}) as daemon:
        for tone in (1, 2, 3):
            await finish(daemon, await submit(daemon, picture(tone), steps=1))
        figures = await read(daemon)
    assert figures["vellumd_cold_job_run_seconds_count"] == 1
    assert figures['vellumd_job_warnings_total{code="engine_cold"}'] == 1
    assert figures['vellumd_job_warnings_total{code="kernel_replaced"}'] == 0  # a rate needs it
    assert figures['vellumd_job_run_seconds_count{source="test"}'] == 2
    assert total(figures, "vellumd_jobs_ended_total") == 3


async def test_the_queue_is_seen(run_daemon: Run, picture: Picture, tmp_path: Path) -> None:
    """Depth, what runs, how long the oldest waits, and why nothing is started."""
    async with run_daemon() as daemon:
        await daemon.executor.pause()
        began = time.monotonic()
        jobs = [await submit(daemon, picture(n), "wait") for n in range(3)]
        waiting = await read(daemon)
        assert waiting["vellumd_queue_jobs"] == 3 and waiting["vellumd_running_jobs"] == 0
        assert waiting['vellumd_queue_held{reason="paused"}'] == 1
        assert 0 < waiting["vellumd_queue_oldest_seconds"] <= time.monotonic() - began
        await daemon.jobs.cancel(jobs[0].id)
        assert (await read(daemon))["vellumd_queue_jobs"] == 2
        await daemon.executor.resume()
        await until(daemon, "vellumd_running_jobs", 1)
        await daemon.jobs.cancel(jobs[2].id)
        (tmp_path / "go").touch()
        await finish(daemon, jobs[1])
        empty = await read(daemon)
    assert empty["vellumd_queue_oldest_seconds"] == empty["vellumd_queue_jobs"] == 0
    assert empty['vellumd_queue_held{reason="paused"}'] == 0
    assert total(empty, "vellumd_jobs_ended_total", status="cancelled") == 2


async def test_the_oldest_is_known_over_a_restart(run_daemon: Run, picture: Picture) -> None:
    """A job that waited before the daemon ended has waited since it was accepted."""
    async with run_daemon() as daemon:
        await daemon.executor.pause()
        job = await submit(daemon, picture())
        while now_ms() < job.created.timestamp() * 1000 + 50:
            await asyncio.sleep(0.01)
    began = time.monotonic()
    async with run_daemon() as daemon:
        opened_s = time.monotonic() - began
        figures = await read(daemon)
        age_s = figures["vellumd_queue_oldest_seconds"]
        assert age_s > opened_s + 0.04
        assert total(figures, "vellumd_jobs_accepted_total") == 0
        await daemon.executor.resume()
        await finish(daemon, job)
        waited = (await read(daemon))['vellumd_job_wait_seconds_sum{source="test"}']
        assert waited >= age_s


async def test_the_engine_is_seen(run_daemon: Run, picture: Picture) -> None:
    """Its state is one of all, and a death is one restart."""
    async with run_daemon() as daemon:
        await until(daemon, 'vellumd_engine_state{state="ready"}', 1)
        assert (await read(daemon))["vellumd_engine_loaded"] == 1
        os.kill(daemon.supervisor.process_id, signal.SIGKILL)
        await until(daemon, "vellumd_engine_restarts_total", 1)
        await until(daemon, 'vellumd_engine_state{state="ready"}', 1)
        await daemon.executor.unload()
        await until(daemon, 'vellumd_engine_state{state="unloaded"}', 1)
        figures = await read(daemon)
    states = [v for name, v in figures.items() if name.startswith("vellumd_engine_state")]
    assert sum(states) == 1 and len(states) == 5
    assert figures["vellumd_engine_loaded"] == 0


async def test_a_late_loop_is_seen(run_daemon: Run) -> None:
    """What keeps the loop from turning for 0.3 s is one sample above 0.25 s."""
    async with run_daemon() as daemon:
        before = (await read(daemon))["vellumd_loop_lag_seconds_count"]
        time.sleep(0.5)  # noqa: ASYNC251 - the fault
        async with asyncio.timeout(20):
            while (await read(daemon))["vellumd_loop_lag_seconds_count"] == before:
                await asyncio.sleep(0.01)
        figures = await read(daemon)
        late = figures["vellumd_loop_lag_seconds_count"]
        late -= figures['vellumd_loop_lag_seconds_bucket{le="0.25"}']
    assert late >= 1


async def test_two_daemons_have_two_registries(
    make_settings: Callable[..., Any], picture: Picture, tmp_path: Any
) -> None:
    """The figures of one know nothing of another in the same process."""
    other = Daemon(make_settings(store={"dir": tmp_path / "other"}))
    async with Daemon(make_settings()).running() as daemon, other.running():
        await finish(daemon, await submit(daemon, picture()))
        assert total(await read(daemon), "vellumd_jobs_accepted_total") == 1
        assert total(await read(other), "vellumd_jobs_accepted_total") == 0


def test_nothing_is_kept_of_ended_jobs() -> None:
    """After their ends, and after being put back, no job is remembered twice or at all."""
    metrics = Metrics()

    def happens(job_id: str, *types: str, **data: Any) -> None:
        for type in types:
            event = JobEvent(job_id=job_id, type=type, at=moment(0), data=data)
            metrics.observe(event)

    for n in range(100):
        happens(f"{n}", "queued", "started", source="http")
        happens(f"{n}", "step", step=1)
        happens(f"{n}", "queued", attempt=1, source="http")
        happens(f"{n}", "started", "done" if n % 2 else "failed")
    happens("cancelled", "queued", "cancelled", source="mqtt")
    assert not metrics._waiting and not metrics._running and not metrics._steps
    assert [metrics._accepted.labels(s)._value.get() for s in ("http", "mqtt")] == [100, 1]


async def test_the_table_of_the_documentation_is_whole(run_daemon: Run) -> None:
    """docs/operations.md lists every figure of ours with its kind and what it means."""
    page = (Path(__file__).parents[1] / "docs/operations.md").read_text("utf-8")
    rows = re.findall(r"^\| `(vellumd_\w+)` \| (\w+) \| (.+) \|$", page, re.MULTILINE)
    async with run_daemon() as daemon:
        text = (await daemon.metrics.text(daemon.info())).decode()
    helps = dict(re.findall(r"^# HELP (vellumd_\w+) (.+)$", text, re.MULTILINE))
    kinds = dict(re.findall(r"^# TYPE (vellumd_\w+) (\w+)$", text, re.MULTILINE))
    ours = {name for name in kinds if not name.endswith("_created")}
    assert {name: tuple(rest) for name, *rest in rows} == {n: (kinds[n], helps[n]) for n in ours}
