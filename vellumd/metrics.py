"""The figures of one daemon, in Prometheus' text format.

What happens is counted as its events pass by, what is is asked when somebody reads. The
registry is the daemon's own: nothing is global, so several daemons fit in one process.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily
from prometheus_client.exposition import generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from vellumd.models import ENDS, JobEvent, now_ms

LOOK_S = 0.1
"""Seconds between two looks how late the loop is."""
LAG_S = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
STEP_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 35.0, 120.0)
JOB_S = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 900.0, 3600.0)
"""Upper bounds of the histograms' buckets in seconds; 35 s is a step on a small card."""
ENGINE_STATES = ("loading", "ready", "restarting", "failed", "unloaded")
COUNTED = (
    "kernel_replaced", "memory_freed", "tier_lowered", "vae_tiled", "weights_streamed",
)  # fmt: skip
"""Warnings of which somebody wants to be told by an alarm: the card does worse than it could."""
HELD = ("paused", "storage_full", "stopping")

Info = Mapping[str, Any]


class Metrics:
    """Counts along with a daemon's jobs. `observe` and `watch_loop` belong into its loop."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry(auto_describe=False)
        self._now = _Now()
        self._registry.register(self._now)
        ProcessCollector(registry=self._registry)
        self._accepted = Counter(
            "vellumd_jobs_accepted",
            "Jobs accepted since the start, by door.",
            ["source"],
            registry=self._registry,
        )
        self._ended = Counter(
            "vellumd_jobs_ended",
            "Jobs that ended since the start, by how and by door.",
            ["status", "source"],
            registry=self._registry,
        )
        self._warnings = Counter(
            "vellumd_job_warnings",
            "Warnings that the engine gave to jobs since the start, by code.",
            ["code"],
            registry=self._registry,
        )
        self._waited = self._histogram(
            "vellumd_job_wait_seconds", "Time a job waited until it was started.", JOB_S, "source"
        )
        self._ran = self._histogram(
            "vellumd_job_run_seconds", "Time from a job's last start to its end.", JOB_S, "source"
        )
        self._cold = self._histogram(
            "vellumd_cold_job_run_seconds",
            "The same of jobs that a cold engine did, which are not in it.",
            JOB_S,
        )
        self._step = self._histogram("vellumd_step_seconds", "Time of a denoising step.", STEP_S)
        self._lag = self._histogram(
            "vellumd_loop_lag_seconds", "How late the daemon's event loop was.", LAG_S
        )
        self._events = Counter(
            "vellumd_transport_events",
            "What happened at a door, as it counts itself.",
            ["transport", "event"],
            registry=self._registry,
        )
        self._waiting: dict[str, float] = {}
        self._running: dict[str, float] = {}
        self._steps: dict[str, float] = {}

    def _histogram(
        self, name: str, text: str, buckets: tuple[float, ...], *labels: str
    ) -> Histogram:
        return Histogram(name, text, labels, buckets=buckets, registry=self._registry)

    def waiting(self, jobs: Iterable[tuple[str, int]]) -> None:
        """Who waits at the start, oldest first: id and time of acceptance, as of `now_ms`."""
        now, clock = time.monotonic(), now_ms()
        self._waiting = {id: now - max(0, clock - created) / 1000 for id, created in jobs}

    def observe(self, event: JobEvent) -> None:
        """Count what happened to a job."""
        now = time.monotonic()
        source = event.data.get("source", "")
        if event.type == "step":
            self._count_step(event, now)
        elif event.type == "queued":
            if "attempt" not in event.data:  # a job put back was accepted before
                self._accepted.labels(source).inc()
            self._forget(event.job_id)
            self._waiting[event.job_id] = now
        elif event.type == "started":
            self._waited.labels(source).observe(now - self._waiting.pop(event.job_id, now))
            self._running[event.job_id] = now
        elif event.type in ENDS:
            self._ended.labels(event.type, source).inc()
            if event.job_id in self._running:
                cold = "engine_cold" in event.data.get("warnings", ())
                ran = self._cold if cold else self._ran.labels(source)
                ran.observe(now - self._running[event.job_id])
            for code in event.data.get("warnings", ()):
                self._warnings.labels(code).inc()
            self._forget(event.job_id)

    def count(self, transport: str, event: str, times: int) -> None:
        """Count what a door says that happened to it."""
        self._events.labels(transport, event).inc(times)

    def _count_step(self, event: JobEvent, now: float) -> None:
        """The time between two steps of a picture; the first has no beginning."""
        before = self._steps.get(event.job_id)
        if before is not None and event.data["step"] > 1:
            self._step.observe(now - before)
        self._steps[event.job_id] = now

    def _forget(self, job_id: str) -> None:
        for known in (self._waiting, self._running, self._steps):
            known.pop(job_id, None)

    async def watch_loop(self) -> None:
        """Measure how late the loop is, until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            due = loop.time() + LOOK_S
            await asyncio.sleep(LOOK_S)
            self._lag.observe(max(0.0, loop.time() - due))

    async def text(self, info: Info) -> bytes:
        """All figures; `info` as of `TransportContext.info`."""
        oldest = next(iter(self._waiting.values()), None)
        self._now.oldest_s = 0.0 if oldest is None else time.monotonic() - oldest
        self._now.tasks = len(asyncio.all_tasks())
        self._now.info = info
        for door in info["transports"]:  # a rate needs the zero too
            self._accepted.labels(door)
            self._waited.labels(door)
            self._ran.labels(door)
            for status in ENDS:
                self._ended.labels(status, door)
        for code in COUNTED:
            self._warnings.labels(code)
        return await asyncio.to_thread(generate_latest, self._registry)


class _Now(Collector):
    """What is so at the moment somebody reads."""

    def __init__(self) -> None:
        self.info: Info = {}
        self.oldest_s = 0.0
        self.tasks = 0

    def collect(self) -> Iterator[Metric]:
        """One family after another."""
        info = self.info
        python = sys.version.partition(" ")[0]
        what = {"version": info["version"], "python": python, "model": info["model"]}
        yield InfoMetricFamily("vellumd_build", "What runs here, always 1.", value=what)
        yield from _queue(info["queue"], self.oldest_s)
        yield from _engine(info["engine"])
        yield from _transports(info["transports"])
        yield from _store(info["store"])
        text = "Times the event loop stood still for half a second or more."
        yield CounterMetricFamily("vellumd_loop_alarms", text, value=info["loop"]["alarms"])
        yield _gauge("vellumd_loop_tasks", "Tasks of the daemon's event loop.", self.tasks)


def _queue(queue: Info, oldest_s: float) -> Iterator[Metric]:
    yield _gauge("vellumd_queue_jobs", "Jobs that wait.", queue["queued"])
    yield _gauge("vellumd_running_jobs", "Jobs that are being edited.", queue["running"])
    text = "How long the oldest waiting job waits."
    yield _gauge("vellumd_queue_oldest_seconds", text, oldest_s)
    held = {why: queue["held"] == why for why in HELD}
    yield _gauges("vellumd_queue_held", "1 for the reason why no job is started.", "reason", held)


def _engine(engine: Info) -> Iterator[Metric]:
    states = {state: engine["state"] == state for state in ENGINE_STATES}
    yield _gauges("vellumd_engine_state", "1 for the state the engine is in.", "state", states)
    yield _gauge("vellumd_engine_loaded", "Whether the engine is in memory.", engine["loaded"])
    text = "Whether a loaded engine has yet to warm up; edits do not wait for it."
    yield _gauge("vellumd_engine_warming", text, engine["warming"])
    text = "Seconds that the engine's last warm-up took; 0 before one has ended."
    yield _gauge("vellumd_engine_warm_up_seconds", text, engine["warm_up_s"] or 0)
    text = "Engine processes replaced."
    yield CounterMetricFamily("vellumd_engine_restarts", text, value=engine["restarts"])


def _transports(doors: Mapping[str, Info]) -> Iterator[Metric]:
    up = {name: door["ok"] for name, door in doors.items()}
    text = "Whether a door works, as it says itself."
    yield _gauges("vellumd_transport_up", text, "transport", up)
    text = "Times a door was opened again."
    crashes = CounterMetricFamily("vellumd_transport_crashes", text, labels=["transport"])
    for name, door in doors.items():
        crashes.add_metric([name], door["crashes"])
    yield crashes


def _store(store: Info) -> Iterator[Metric]:
    yield _gauge("vellumd_store_used_bytes", "Bytes of pictures.", store["used_bytes"])
    text = "Bytes of pictures allowed (store.max_gb)."
    yield _gauge("vellumd_store_limit_bytes", text, store["limit_bytes"])
    yield _gauge("vellumd_disk_free_bytes", "Bytes the disk has left.", store["free_bytes"])
    text = "Bytes the disk must have left (store.reserve_gb)."
    yield _gauge("vellumd_disk_reserve_bytes", text, store["reserve_bytes"])
    yield _gauge("vellumd_intake_open", "Whether jobs are accepted.", store["open"])


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(name, text, value=float(value))


def _gauges(name: str, text: str, label: str, values: Mapping[str, float]) -> Metric:
    family = GaugeMetricFamily(name, text, labels=[label])
    for of, value in values.items():
        family.add_metric([of], float(value))
    return family
