"""Sends many jobs to a real daemon and measures whether anything grows with them.

Clients, pictures and engine stay the same from the first job to the last, so whatever is
more at the end than at the beginning was kept of the jobs in between.
"""

from __future__ import annotations

import asyncio
import os
import statistics
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, fields
from pathlib import Path

import aiohttp
import psutil

from tests.test_metrics import Figures, parse
from tests.trust.kills import PAPER, picture
from vellumd.testing import free_port

CLIENTS = 4
SAMPLES = 100
"""Looks at the daemon in one run."""
WARM = 0.3
"""Share of a run after which all threads, caches and pools have come up."""
LAG = 'vellumd_loop_lag_seconds_bucket{le="%s"}'
LAG_S = ("0.001", "0.005", "0.01", "0.025", "0.05", "0.1", "0.25", "0.5", "1.0", "2.5")


@dataclass(frozen=True)
class Sample:
    """The daemon after so many jobs; `rss_mb` in 10^6 bytes."""

    jobs: int
    rss_mb: float
    descriptors: int
    threads: int
    tasks: int


class Soak:
    """One run of `jobs` jobs in `folder`."""

    def __init__(self, folder: Path, jobs: int) -> None:
        self.folder = folder
        self.jobs = jobs
        self.url = f"http://127.0.0.1:{free_port()}"
        self.samples: list[Sample] = []
        self._left = iter(range(jobs))
        self._ended = 0

    async def run(self) -> dict[str, object]:
        """Send, measure, and the figures."""
        timeout = aiohttp.ClientTimeout(total=120)
        async with (
            self._daemon() as daemon,
            aiohttp.ClientSession(self.url, timeout=timeout) as session,
        ):
            before = await self._figures(session)
            async with asyncio.TaskGroup() as tasks:
                for _ in range(CLIENTS):
                    tasks.create_task(self._client(session, daemon))
            return summary(self.samples, before, await self._figures(session))

    async def _client(self, session: aiohttp.ClientSession, daemon: psutil.Process) -> None:
        for number in self._left:
            form = aiohttp.FormData({"prompt": "invert", "steps": "2"})
            form.add_field("images", picture(number), filename="photo.png")
            async with session.post("/v1/jobs", data=form, headers={"Prefer": "wait=60"}) as got:
                job = await got.json()
                assert (got.status, job["status"]) == (200, "done"), job
            async with session.get(f"/v1/jobs/{job['id']}/result") as got:
                assert got.status == 200 and await got.read()
            self._ended += 1
            if self._ended % (self.jobs // SAMPLES) == 0:
                await self._sample(session, daemon)

    async def _sample(self, session: aiohttp.ClientSession, daemon: psutil.Process) -> None:
        figures = await self._figures(session)
        self.samples.append(
            Sample(
                jobs=self._ended,
                rss_mb=daemon.memory_info().rss / 1e6,
                descriptors=daemon.num_fds(),
                threads=daemon.num_threads(),
                tasks=int(figures["vellumd_loop_tasks"]),
            )
        )

    async def _figures(self, session: aiohttp.ClientSession) -> Figures:
        async with session.get("/metrics") as got:
            return parse(await got.read())

    @asynccontextmanager
    async def _daemon(self) -> AsyncIterator[psutil.Process]:
        path = os.pathsep.join([str(PAPER), os.environ.get("PYTHONPATH", "")])
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "vellumd", "serve", "--store.dir", str(self.folder / "data"),
            "--engine.name", "paper", "--plugins.paper.step_s", "0",
            "--plugins.http.port", self.url.rpartition(":")[2],
            cwd=self.folder, env={**os.environ, "PYTHONPATH": path},
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL,
        )  # fmt: skip
        assert process.stdout
        try:
            await process.stdout.readline()  # its doors are open
            yield psutil.Process(process.pid)
        finally:
            process.terminate()
            await process.communicate()


def summary(samples: list[Sample], before: Figures, after: Figures) -> dict[str, object]:
    """The figures of a run that say the same on every machine."""
    warm = samples[int(len(samples) * WARM) :]
    by_jobs = statistics.linear_regression([s.jobs for s in warm], [s.rss_mb for s in warm])
    ended = {
        status: round(after[f'vellumd_jobs_ended_total{{source="http",status="{status}"}}'])
        for status in ("done", "failed", "cancelled")
    }
    return {
        "jobs": samples[-1].jobs,
        "statuses": ended,
        "engine_restarts": round(after["vellumd_engine_restarts_total"]),
        "rss_mb_per_1000_jobs": round(by_jobs.slope * 1000, 3),
        **{f"{name}_growth": growth(warm, name) for name in FLAT},
        "loop_lag_p99_s_at_most": lag_p99(before, after),
        "loop_lag_samples": round(_lag(before, after)("+Inf")),
    }


FLAT = [field.name for field in fields(Sample) if field.name not in ("jobs", "rss_mb")]


def growth(samples: list[Sample], name: str) -> float:
    """By how much the mean of the last third exceeds the first third's."""
    third = len(samples) // 3
    values = [getattr(sample, name) for sample in samples]
    return round(statistics.mean(values[-third:]) - statistics.mean(values[:third]), 2)


def lag_p99(before: Figures, after: Figures) -> float:
    """The bucket of the loop's lag below which 99 of 100 looks fell."""
    below = _lag(before, after)
    return next((float(le) for le in LAG_S if below(le) >= 0.99 * below("+Inf")), float("inf"))


def _lag(before: Figures, after: Figures) -> Callable[[str], float]:
    return lambda le: after[LAG % le] - before[LAG % le]
