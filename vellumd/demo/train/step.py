"""A training step, which a GPU repeats as one CUDA graph."""

# torch annotates in part only.
# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

WARM = 3
"""Runs before the recording: they compile, allocate and fill the caches."""


class Step:
    """Does `work`, on a GPU from the fourth time on by replaying a recording of it.

    A toy model's kernels end sooner than Python launches the next ones: launched one by
    one they kept an H100 busy for 38 % of the time. So `work` must do the same kernels
    each time, on tensors that stay where they are, and may not wait for the GPU: drawing
    a batch, loss, gradients and the optimizer's step; and what it leaves behind must lie in
    tensors that were there before.
    """

    def __init__(self, work: Callable[[], None], device: torch.device, memory: Any = None) -> None:
        """`memory` is a graph's pool that steps may share which never run at the same time."""
        self._work = work
        self._memory = memory
        self._device = device
        self._left = WARM
        self._graph: torch.cuda.CUDAGraph | None = None

    def __call__(self) -> None:
        """One step."""
        if self._device.type != "cuda":
            self._work()
        elif self._left:
            self._left -= 1
            self._aside()
        else:
            self._graph = self._graph or self._record()
            self._graph.replay()

    def _aside(self) -> None:
        """Run on a stream of its own, as a recording will."""
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            self._work()
        torch.cuda.current_stream().wait_stream(stream)

    def _record(self) -> torch.cuda.CUDAGraph:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._memory):
            self._work()
        return graph
