"""What 200 listeners of events cost the daemon and everybody else.

`python -m tests.bench.listeners PORT COUNT` is the crowd: it listens and throws away.
"""

from __future__ import annotations

import asyncio
import selectors
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import astuple, dataclass

import psutil

from tests.bench import serving

LISTENERS = 200
A_SECOND = 5
"""Uploads; each is an event for every listener, beside those of the engine's steps."""


@dataclass(frozen=True)
class Cost:
    """Share of a core that the daemon's process took, and seconds of uploads."""

    core: float
    p50: float
    p99: float


def measure(port: int, pid: int, photos: Sequence[bytes], seconds: float) -> tuple[Cost, Cost]:
    """The daemon's cost without and with the listeners, by turns in one run."""
    alone: list[Cost] = []
    beside: list[Cost] = []
    for _ in range(3):
        alone.append(asyncio.run(_work(port, pid, photos, seconds)))
        with listening(port, LISTENERS):
            beside.append(asyncio.run(_work(port, pid, photos, seconds)))
    return _median(alone), _median(beside)


def _median(costs: list[Cost]) -> Cost:
    return Cost(*(statistics.median(values) for values in zip(*map(astuple, costs), strict=True)))


async def _work(port: int, pid: int, photos: Sequence[bytes], seconds: float) -> Cost:
    """Uploads at an even pace while the engine works."""
    await serving.flood(port, "/v1/jobs", photos, 5, 1)
    daemon = psutil.Process(pid)
    took: list[float] = []
    began, spent = time.perf_counter(), _spent(daemon)
    while (now := time.perf_counter()) < began + seconds:
        took += await serving.flood(port, "/v1/jobs", photos, 1, 1)
        await asyncio.sleep(max(0.0, now + 1 / A_SECOND - time.perf_counter()))
    core = (_spent(daemon) - spent) / (time.perf_counter() - began)
    return Cost(core, statistics.median(took), serving.p99(took))


def _spent(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


@contextmanager
def listening(port: int, count: int) -> Iterator[None]:
    """The crowd in a process of its own, all of it connected."""
    command = [sys.executable, "-m", "tests.bench.listeners", str(port), str(count)]
    with subprocess.Popen(command, cwd=serving.ROOT, stdout=subprocess.PIPE) as crowd:
        assert crowd.stdout
        assert crowd.stdout.readline() == b"listening\n"
        yield
        assert crowd.poll() is None, "the crowd did not stay"
        crowd.kill()


def listen(port: int, count: int) -> None:
    """Open the streams, say so, and read for ever; end if one is closed."""
    chosen = selectors.DefaultSelector()
    for _ in range(count):
        client = socket.create_connection(("127.0.0.1", port))
        client.sendall(b"GET /v1/events HTTP/1.1\r\nHost: localhost\r\n\r\n")
        head = client.recv(4096)
        assert b"text/event-stream" in head, head
        client.setblocking(False)
        chosen.register(client, selectors.EVENT_READ, client)
    print("listening", flush=True)
    while True:
        for key, _ in chosen.select():
            if not key.data.recv(65536):
                return


if __name__ == "__main__":
    listen(int(sys.argv[1]), int(sys.argv[2]))
