"""The queue door beside a server that dies and misbehaves; and how gentle and quick it is."""

from __future__ import annotations

import os
import random
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from tests.conftest import Record
from tests.trust import queues
from vellumd.testing import DaemonProcess, free_port

HASTY = Path(__file__).parents[1] / "fixtures" / "hasty_queue"


@dataclass(frozen=True)
class Dead:
    """A daemon whose server has been dead since a time, when it had taken `cpu_s`."""

    url: str
    log: Path
    process: psutil.Process
    since: float
    cpu_s: float


@pytest.fixture(scope="module", autouse=True)
def dead(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Dead]:
    """It polls in vain beside the other tests of this file, so that its time costs none."""
    folder = tmp_path_factory.mktemp("dead")
    url, log = f"http://127.0.0.1:{free_port()}", folder / "log"
    daemon = DaemonProcess(folder, "queue", {"url": url})
    daemon.start()
    try:
        process = psutil.Process(daemon.pid)
        yield Dead(url, log, process, time.monotonic(), cpu(process))
    finally:
        daemon.close()


@pytest.mark.timeout(3600)
def test_nothing_is_lost_or_done_twice(
    tmp_path: Path, full: bool, record: Record, monkeypatch: pytest.MonkeyPatch
) -> None:
    """1,000 jobs, 50 restarts, every fault: each is answered once; else a tenth, in haste."""
    seed = random.SystemRandom().randrange(2**32)
    if full:
        plan = queues.Plan(tmp_path, 1000, 50, seed)
    else:
        monkeypatch.setenv("PYTHONPATH", f"{HASTY}{os.pathsep}{os.environ['PYTHONPATH']}")
        plan = queues.Plan(tmp_path, 100, 5, seed, door="hasty_queue")
    figures = queues.run(plan)
    record("queue-faults", figures)
    assert figures["broken"] == []


@pytest.fixture
def idle(tmp_path: Path) -> Iterator[tuple[queues.QueueServer, DaemonProcess]]:
    """A server without jobs and a daemon that polls it."""
    server = queues.QueueServer(tmp_path)
    server.start()
    daemon = DaemonProcess(tmp_path, "queue", {"url": server.url})
    daemon.start()
    yield server, daemon
    daemon.close()
    server.kill()


@pytest.mark.timeout(600)
def test_a_job_starts_soon(
    idle: tuple[queues.QueueServer, DaemonProcess], full: bool, record: Record
) -> None:
    """200 jobs that appear at random while all is idle: 99 % within 1.2 s.

    8 when not full, half of which count: other tests may have the machine.
    """
    server, daemon = idle
    chance = random.Random(1)
    seconds = []
    with server.ledger() as ledger:
        for number in range(200 if full else 8):
            time.sleep(chance.uniform(0, 1))
            before = daemon.count("started")
            appeared = time.monotonic()
            ledger.add({"id": number, "image": queues.picture(number), "prompt": "invert"})
            queues.wait(lambda before=before: daemon.count("started") > before, 60)
            seconds.append(time.monotonic() - appeared)
            queues.wait(lambda number=number: queues.ended(ledger) > number, 60)
    p99 = statistics.quantiles(seconds, n=100, method="inclusive")[-1]
    mean = statistics.mean(seconds)
    record("queue-start", {"jobs": len(seconds), "mean_s": round(mean, 3), "p99_s": round(p99, 3)})
    assert (p99 if full else statistics.median(seconds)) <= 1.2


def test_a_dead_server_costs_little(dead: Dead, full: bool, record: Record) -> None:
    """At most 1 % of a core and one line in the log, however long it is dead.

    It was dead while the other tests ran; alone this one waits as long.
    """
    time.sleep(max(0.0, dead.since + (120 if full else 15) - time.monotonic()))
    span = time.monotonic() - dead.since
    share = (cpu(dead.process) - dead.cpu_s) / span
    lines = dead.log.read_text().count(dead.url)
    figures = {"seconds": round(span), "cpu_percent": round(100 * share, 2), "lines": lines}
    record("queue-dead", figures)
    assert share <= 0.01
    assert lines == 2  # that it polls; that it cannot be reached


def cpu(process: psutil.Process) -> float:
    """Seconds of CPU that the daemon took; its engine is not counted."""
    times = process.cpu_times()
    return float(times.user + times.system)
