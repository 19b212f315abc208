"""Safetensors files written tensor by tensor, each there whole or not at all."""

from __future__ import annotations

import hashlib
import json
import math
import os
import struct
from collections import deque
from collections.abc import Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import IO

import torch
from torch import Tensor

from vellumd import platform
from vellumd.artefact import Shard
from vellumd.engine.reading import DTYPES
from vellumd.weights.header import SIZES

NAMES = {dtype: name for name, dtype in DTYPES.items()}
"""Safetensors' names of types."""

BEHIND = 2
"""Tensors that wait to be written and hashed."""

Layout = Mapping[str, tuple[str, tuple[int, ...]]]
"""Tensors of a file in the order of their bytes: type and shape by name."""


def size_of(layout: Layout) -> int:
    """Bytes of the tensors."""
    return sum(SIZES[dtype] * math.prod(shape) for dtype, shape in layout.values())


def write(file: Path, layout: Layout, tensors: Iterable[tuple[str, Tensor]]) -> Shard:
    """Write `tensors`, which come in the order of `layout`, one at a time.

    The file appears when it is whole and on the disk. Raises `ValueError` for a tensor
    that is not what the layout says, and `OSError`.
    """
    part = file.with_name(f"{file.name}.part")
    with part.open("wb") as opened:
        with _Behind(opened) as behind:
            behind.put(_head(layout))
            expected = iter(layout.items())
            for name, tensor in tensors:
                if (name, (NAMES[tensor.dtype], tuple(tensor.shape))) != next(expected, None):
                    raise ValueError(f"{name} is not next in {file.name}")
                flat = tensor.detach().to("cpu").contiguous().reshape(-1).view(torch.uint8)
                behind.put(memoryview(flat.numpy()))  # type: ignore[arg-type]
            if next(expected, None) is not None:
                raise ValueError(f"{file.name} lacks tensors")
            digest = behind.finish()
        opened.flush()
        os.fsync(opened.fileno())
        size = opened.tell()
    part.replace(file)
    platform.fsync_dir(file.parent)
    return Shard(size=size, sha256=digest)


class _Behind:
    """Writes and hashes what is put, each in a thread of its own, while the next is computed."""

    def __init__(self, opened: IO[bytes]) -> None:
        self._opened = opened
        self._digest = hashlib.sha256()
        self._threads = ThreadPoolExecutor(1, "write"), ThreadPoolExecutor(1, "hash")
        self._running: deque[Future[object]] = deque()

    def __enter__(self) -> _Behind:
        return self

    def __exit__(self, *_: object) -> None:
        for thread in self._threads:
            thread.shutdown(cancel_futures=True)

    def put(self, data: bytes | memoryview) -> None:
        """Have `data` written; raises `OSError` for what was put before."""
        writer, hasher = self._threads
        self._running += [
            writer.submit(self._opened.write, data),
            hasher.submit(self._digest.update, data),
        ]
        while len(self._running) > 2 * BEHIND:
            self._running.popleft().result()

    def finish(self) -> str:
        """Wait for all of it; its SHA-256."""
        while self._running:
            self._running.popleft().result()
        return self._digest.hexdigest()


def _head(layout: Layout) -> bytes:
    """Length and JSON, padded with blanks to a multiple of 64 so that tensors are aligned."""
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, (dtype, shape) in layout.items():
        end = offset + SIZES[dtype] * math.prod(shape)
        entries[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-(len(text) + 8) % 64)
    return struct.pack("<Q", len(text)) + text
