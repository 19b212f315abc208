"""What serving costs, each figure beside its baseline: `python -m tests.bench`.

Needs no card. Figures go to standard output and, with --out, to a JSON file.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import datetime
from pathlib import Path
from typing import Any

import psutil

from tests.bench import crowd, listeners, serving
from vellumd.testing import free_port

JOBS = 10_000
CLIENTS = 16


def main() -> None:
    """Run all and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--jobs", type=int, default=JOBS, help="jobs of the intake benchmark")
    parser.add_argument("--only", metavar="BENCH", help="one of them, by its function's name")
    args = parser.parse_args()
    figures: dict[str, Any] = {}
    benches = (
        help_start, idle_daemon, first_step, slow_crowd, event_listeners,
        lambda: intake_and_restart(args.jobs),
    )  # fmt: skip
    for bench in [b for b in benches if args.only in (None, b.__name__)]:
        measured = bench()
        figures.update(measured)
        for name, value in measured.items():
            print(f"{name:32} {value}", flush=True)
    if args.out:
        machine = f"{os.cpu_count()} cores, {platform.system()}, Python {platform.python_version()}"
        record = {"at": datetime.now().astimezone().isoformat(), "machine": machine, **figures}
        args.out.write_text(json.dumps(record, indent=1) + "\n")


def help_start() -> dict[str, Any]:
    """`vellumd --help` beyond a bare interpreter, seconds."""
    commands = ([sys.executable, "-c", "pass"], [sys.executable, "-m", "vellumd", "--help"])
    took: list[list[float]] = [[], []]
    for _ in range(15):
        for times, command in zip(took, commands, strict=True):
            began = time.perf_counter()
            subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
            times.append(time.perf_counter() - began)
    bare, help_s = (statistics.median(times[1:]) for times in took)
    return {"help_beyond_interpreter_s": round(help_s - bare, 3), "interpreter_s": round(bare, 3)}


def idle_daemon() -> dict[str, Any]:
    """Start and size of a daemon with the demo model."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        port = free_port()
        with serving.process(*serving.daemon(Path(folder), port, engine="demo")) as process:
            health = serving.until_answer(port)
            ready = serving.until_answer(port, "/readyz")
            time.sleep(2)
            daemon = psutil.Process(process.pid)
            mapped = {Path(entry.path).name for entry in daemon.memory_maps()}
            rss = daemon.memory_info().rss / 1e6
    return {
        "healthz_after_start_s": round(health, 3),
        "readyz_after_start_s": round(health + ready, 3),
        "idle_daemon_rss_mb": round(rss, 1),
        "torch_mapped_in_daemon": any("torch" in name for name in mapped),
    }


def first_step() -> dict[str, Any]:
    """Accepted until the engine starts, idle, milliseconds."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        port, ledger = free_port(), Path(folder) / "ledger"
        extra = ["--plugins.paper.ledger", str(ledger)]
        with serving.process(*serving.daemon(Path(folder) / "data", port, *extra)):
            serving.until_answer(port, "/readyz")
            photos = serving.photos(8)
            for number in range(200):
                asyncio.run(serving.flood(port, "/v1/jobs", photos, 1, 1))
                until_lines(ledger, number + 1)
                time.sleep(0.02)
        began = {job: float(at) for job, at in (line.split() for line in ledger.open())}
        database = sqlite3.connect(Path(folder) / "data" / "jobs.sqlite")
        rows = database.execute("SELECT job_id, at FROM events WHERE type = 'queued'").fetchall()
        database.close()
    waits = [1000 * (began[job] - at / 1000) for job, at in rows]
    return {
        "accepted_to_engine_ms_p50": round(statistics.median(waits), 1),
        "accepted_to_engine_ms_p99": round(serving.p99(waits), 1),
    }


def until_lines(file: Path, count: int) -> None:
    """Wait until the engine noted that many executions."""
    until = time.monotonic() + 30
    while time.monotonic() < until:
        if file.exists() and file.read_bytes().count(b"\n") >= count:
            return
        time.sleep(0.002)
    raise TimeoutError(file.name)


def slow_crowd() -> dict[str, Any]:
    """Uploads beside idle sockets, slow bodies and slow readers, against uploads alone."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        port = free_port()
        command = serving.daemon(Path(folder), port, "--plugins.paper.step_s", "0.05")
        with serving.process(*command):
            serving.until_answer(port, "/readyz")
            photos = serving.photos(16)
            alone, beside = asyncio.run(crowd.compare(port, crowd.Crowd(), photos, 4, 800))
    return {
        "upload_alone_ms_p99": round(1000 * alone, 1),
        "upload_beside_crowd_ms_p99": round(1000 * beside, 1),
        "crowd_ratio": round(beside / alone, 2),
    }


def event_listeners() -> dict[str, Any]:
    """200 streams of all events beside 10 steps and 5 uploads a second."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        port = free_port()
        command = serving.daemon(Path(folder), port, "--plugins.paper.step_s", "0.1")
        with serving.process(*command) as process:
            serving.until_answer(port, "/readyz")
            photos = serving.photos(16)
            alone, beside = listeners.measure(port, process.pid, photos, 12)
    return {
        "listeners": listeners.LISTENERS,
        "core_alone": round(alone.core, 3),
        "core_beside_listeners": round(beside.core, 3),
        "core_of_listeners": round(beside.core - alone.core, 3),
        "upload_alone_ms_p50": round(1000 * alone.p50, 1),
        "upload_beside_listeners_ms_p50": round(1000 * beside.p50, 1),
        "upload_alone_ms_p99": round(1000 * alone.p99, 1),
        "upload_beside_listeners_ms_p99": round(1000 * beside.p99, 1),
    }


def intake_and_restart(jobs: int) -> dict[str, Any]:
    """Durable intake while the engine works, against a bare handler; then a restart."""
    photos = serving.photos(64)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:
        folder = Path(name)
        bare = measure_bare(folder, photos, min(jobs, 4000))
        port = free_port()
        command = serving.daemon(
            folder / "data", port, "--limits.queue", "1000000", "--plugins.paper.step_s", "0.05"
        )
        with serving.process(*command):
            serving.until_answer(port, "/readyz")
            ours = flood(port, "/v1/jobs", photos, jobs)
        # Killed with all of them waiting; how soon is the next one accepted?
        with serving.process(*command):
            began = time.perf_counter()
            serving.until_answer(port)
            asyncio.run(serving.flood(port, "/v1/jobs", photos, 1, 1))
            restart = time.perf_counter() - began
            lists = [listing(port) for _ in range(50)]
        claims = asyncio.run(claim_times(folder / "data"))
    return {
        "photo_kb": round(len(photos[0]) / 1024),
        "bare_per_s": round(bare["rate"], 1),
        "intake_per_s": round(ours["rate"], 1),
        "intake_ratio_to_bare": round(ours["rate"] / bare["rate"], 2),
        "bare_ms_p99": round(1000 * bare["p99"], 1),
        "intake_ms_p99": round(1000 * ours["p99"], 1),
        "queued_jobs": jobs,
        "restart_until_accepting_s": round(restart, 2),
        "list_ms_p50": round(1000 * statistics.median(lists), 1),
        "claim_ms_p50": round(1000 * statistics.median(claims), 2),
        "claim_ms_p99": round(1000 * serving.p99(claims), 2),
    }


def measure_bare(folder: Path, photos: list[bytes], total: int) -> dict[str, float]:
    """The baseline's rate and p99."""
    port = free_port()
    (folder / "bare").mkdir()
    with serving.process("-m", "tests.bench.bare", str(port), str(folder / "bare")):
        serving.until_answer(port)
        return flood(port, "/", photos, total)


def flood(port: int, path: str, photos: list[bytes], total: int) -> dict[str, float]:
    """Rate and p99 of `total` uploads by `CLIENTS` clients, after a short warm-up."""
    asyncio.run(serving.flood(port, path, photos, 64, CLIENTS))
    began = time.perf_counter()
    seconds = asyncio.run(serving.flood(port, path, photos, total, CLIENTS))
    return {"rate": total / (time.perf_counter() - began), "p99": serving.p99(seconds)}


def listing(port: int) -> float:
    """Seconds of one page of waiting jobs over HTTP."""
    began = time.perf_counter()
    serving.until_answer(port, "/v1/jobs?status=queued")
    return time.perf_counter() - began


async def claim_times(folder: Path) -> list[float]:
    """Seconds of single claims from the full queue, commit included."""
    from vellumd.store.store import Store

    store = await Store.open(folder / "jobs.sqlite", lambda events: None)
    seconds = []
    for _ in range(200):
        began = time.perf_counter()
        assert await store.claim(0)
        seconds.append(time.perf_counter() - began)
    await store.close()
    return seconds


if __name__ == "__main__":
    main()
