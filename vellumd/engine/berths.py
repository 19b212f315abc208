"""Where weights will wait in the host's memory, made while they are still on their way.

To make and pin pages takes about as long as to read files, and the card copies to what is
pinned at its link's full rate: so threads are ahead with it of those that read.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from torch import Tensor

from vellumd.engine.pinned import on_host
from vellumd.engine.reading import THREADS, StoredTensor
from vellumd.engine.streaming import Part, size_of
from vellumd.engine.weights import Fit


class Berths:
    """Pieces of the host's memory, pinned if `device` is a card, each for a block's weights."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pool = ThreadPoolExecutor(THREADS, "berths")
        self._memory: dict[str, Future[Tensor]] = {}
        self._parts: dict[str, tuple[str, Part]] = {}

    def add(self, prefix: str, parts: Sequence[Part], *, pinned: bool = True) -> None:
        """One for the weights whose names are `prefix` and that of one of `parts`.

        Without `pinned` for those that are used on the host.
        """
        device = self._device if pinned else torch.device("cpu")
        self._memory[prefix] = self._pool.submit(on_host, size_of(parts), device)
        self._parts |= {prefix + part.name: (prefix, part) for part in parts}

    def memory(self, prefix: str) -> Tensor:
        """The bytes of all weights of `prefix`.

        Raises `MemoryError` where the host has not that much.
        """
        return self._memory[prefix].result()

    def filling(self, fit: Fit) -> Fit:
        """`fit`, with every weight that has a berth moved there."""

        def fit_and_move(stored: StoredTensor) -> dict[str, Tensor]:
            return {name: self._moved(name, tensor) for name, tensor in fit(stored).items()}

        return fit_and_move

    def _moved(self, name: str, tensor: Tensor) -> Tensor:
        if name not in self._parts:
            return tensor
        prefix, part = self._parts[name]
        assert (tensor.shape, tensor.dtype) == (part.shape, part.dtype)
        return part.of(self.memory(prefix)).copy_(tensor)

    def close(self) -> None:
        """End the threads; what was not begun will not be made."""
        self._pool.shutdown(cancel_futures=True)
