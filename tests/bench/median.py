"""The median time of something that is run a few times."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch

from tests.bench.edits import CUDA

ROUNDS = 5


def median(run: Callable[[], object]) -> float:
    """Milliseconds, after one round to warm up."""
    times = []
    for _ in range(ROUNDS + 1):
        began = time.perf_counter()
        run()
        if CUDA:
            torch.cuda.synchronize()
        times.append(1000 * (time.perf_counter() - began))
    return round(statistics.median(times[1:]), 2)
