"""A queue server that is killed and breaks its answers, and a real daemon that pulls from it."""

from __future__ import annotations

import base64
import io
import random
import sqlite3
import subprocess
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from vellumd.testing import DaemonProcess, free_port
from vellumd.testing.standin import history
from vellumd_queue.server import faults
from vellumd_queue.server.ledger import Ledger

LEASE_S = 3.0
SILENCE_S = 0.5
"""Seconds of the server's silent faults; then it hangs up."""
SETTLE_S = 1200.0


@dataclass(frozen=True)
class Plan:
    """How a run goes: `rate` is the share of broken answers, `door` the plugin that pulls."""

    folder: Path
    jobs: int
    restarts: int
    seed: int
    rate: float = 0.12
    door: str = "queue"


class QueueServer:
    """`python -m vellumd_queue.server` in a process of its own."""

    def __init__(self, folder: Path, *options: str) -> None:
        self.db = folder / "queue.sqlite"
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._options = options
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, *options: str) -> None:
        """Start it and wait until it listens."""
        command = [sys.executable, "-m", "vellumd_queue.server", "--port", str(self.port)]
        command += ["--db", str(self.db), *self._options, *options]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE)
        assert self._process.stdout is not None
        assert b"queue server on" in self._process.stdout.readline()

    def kill(self) -> None:
        """SIGKILL, if it runs."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            assert self._process.stdout is not None
            self._process.stdout.close()
            self._process = None

    @contextmanager
    def ledger(self) -> Iterator[Ledger]:
        """Its ledger, beside it."""
        with closing(Ledger(self.db)) as ledger:
            yield ledger


def picture(number: int) -> str:
    """A picture of its own for each job, in base64."""
    buffer = io.BytesIO()
    Image.new("RGB", (64, 48), (number % 251, number // 251, 99)).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def run(plan: Plan) -> dict[str, Any]:
    """Carry the plan out: the figures, and `broken`: every promise that was not kept."""
    chance = random.Random(plan.seed)
    options = ["--lease", str(LEASE_S), "--faults", str(plan.rate), "--silence", str(SILENCE_S)]
    server = QueueServer(plan.folder, *options)
    with server.ledger() as ledger:
        for number in range(plan.jobs):
            id: Any = number if number % 2 else f"job {number}"
            job = {"id": id, "image": picture(number), "prompt": "invert", "seed": number}
            ledger.add(job)
        daemon = DaemonProcess(plan.folder, plan.door, {"url": server.url, "heartbeat": 1})
        began = time.monotonic()
        try:
            server.start("--seed", str(chance.randrange(2**32)))
            daemon.start()
            for done in range(1, plan.restarts + 1):
                # Restarts are spread over the run, however long that takes.
                wait(lambda done=done: ended(ledger) >= done * plan.jobs // (plan.restarts + 2))
                time.sleep(chance.uniform(0, 0.5))
                server.kill()
                time.sleep(chance.uniform(0, 1))
                server.start("--seed", str(chance.randrange(2**32)))
            wait(lambda: ended(ledger) == plan.jobs)
            seconds = time.monotonic() - began
            wait(lambda: not owed(plan.folder))
            assert daemon.stop(10) == 0
        finally:
            daemon.close()
            server.kill()
    return {**judge(plan, server.db), "seconds": round(seconds, 1)}


def judge(plan: Plan, db: Path) -> dict[str, Any]:
    """Compare the server's ledger with what the daemon did."""
    with closing(sqlite3.connect(db)) as ledger:
        lines = ledger.execute("SELECT job, what, sha256 FROM ledger").fetchall()
        statuses = Counter(row[0] for row in ledger.execute("SELECT status FROM jobs"))
    of: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for job, what, sha256 in lines:
        of[job][what].append(sha256)
    broken = []
    if statuses != {"done": plan.jobs}:
        broken.append(f"not all jobs are done: {dict(statuses)}")
    for job, notes in of.items():
        results = notes["accepted"] + notes["repeated"]
        if len(notes["accepted"]) != 1:
            broken.append(f"{job} has {len(notes['accepted'])} accepted results")
        if len(set(results)) > len(set(notes["given"])):
            broken.append(f"{job} got more different results than it has contents")
        if notes["unknown"]:
            broken.append(f"{job} was answered but never given")
    with closing(Ledger(db)) as seen:
        happened = seen.faults()
    if missed := set(faults.ALL) - set(happened):
        broken.append(f"faults that did not happen: {missed}")
    events = history(plan.folder)
    executed = Counter(job for job, what, _ in events if what == "executed")
    if twice := [job for job, times in executed.items() if times > 1]:
        broken.append(f"computed twice: {twice}")
    if deepest(events) > 1:
        broken.append(f"{deepest(events)} jobs waited here at a time")
    what = Counter(what for _, what, _ in lines)
    return {
        "seed": plan.seed,
        "jobs": plan.jobs,
        "restarts": plan.restarts,
        "given": what["given"],
        "contents": sum(len(set(notes["given"])) for notes in of.values()),
        "executed": sum(executed.values()),
        "results": dict(what),
        "faults": happened,
        "most_waiting": deepest(events),
        "broken": broken,
    }


def deepest(events: list[tuple[str, str, int]]) -> int:
    """The most jobs that ever waited in the daemon at a time."""
    waiting = most = 0
    for _, what, _ in events:
        waiting += {"queued": 1, "started": -1}.get(what, 0)
        most = max(most, waiting)
    return most


def ended(ledger: Ledger) -> int:
    """How many jobs have a result."""
    counts = ledger.counts()
    return counts["done"] + counts["failed"]


def owed(folder: Path) -> int:
    """Deliveries that the running daemon still has to make."""
    file = f"file:{folder / 'data' / 'jobs.sqlite'}?mode=ro"
    with closing(sqlite3.connect(file, uri=True)) as store:
        query = "SELECT count(*) FROM deliveries WHERE state IN ('waiting', 'pending')"
        return int(store.execute(query).fetchone()[0])


def wait(happened: Callable[[], bool], seconds: float = SETTLE_S) -> None:
    """Wait until something is so."""
    end = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.05)
