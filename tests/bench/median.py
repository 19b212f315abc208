"""The median time of something that is run a few times, and of what it calls."""

from __future__ import annotations

import contextlib
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Any
from unittest import mock

import torch

from tests.bench.edits import CUDA

ROUNDS = 5


Row = Callable[[], object]


def median(run: Row) -> float:
    """Milliseconds, after one round to warm up."""
    return round(statistics.median([timed(run) for _ in range(ROUNDS + 1)][1:]), 2)


def timed(run: Row) -> float:
    """Milliseconds of one round; the card is waited for."""
    began = time.perf_counter()
    run()
    if CUDA:
        torch.cuda.synchronize()
    return 1000 * (time.perf_counter() - began)


def shares(run: Row, parts: Mapping[str, tuple[object, str]]) -> dict[str, float]:
    """Medians of `run` and of the functions that it calls, each waited for; and of the rest.

    `parts` tell where each function is found, by the name that its share gets. In turns with that
    `run` is timed undivided: whatever else slows the machine slows both alike.
    """
    rounds = []
    for _ in range(ROUNDS + 1):
        undivided = timed(run)
        found: defaultdict[str, float] = defaultdict(float)
        with contextlib.ExitStack() as stack:
            for name, (owner, attribute) in parts.items():
                timing = _timing(getattr(owner, attribute), found, name)
                stack.enter_context(mock.patch.object(owner, attribute, timing))
            whole = timed(run)
        rest = whole - sum(found.values())
        rounds.append(found | {"the rest": rest, "in all": whole, "undivided": undivided})
    return {
        name: round(statistics.median(found[name] for found in rounds[1:]), 2) for name in rounds[0]
    }


def _timing(function: Callable[..., Any], found: dict[str, float], name: str) -> Callable[..., Any]:
    """`function`, which adds what it takes to its share in `found`."""

    def call(*given: Any, **named: Any) -> Any:
        made: list[Any] = []
        found[name] += timed(lambda: made.append(function(*given, **named)))
        return made[0]

    return call
