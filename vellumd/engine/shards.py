"""Safetensors files written tensor by tensor, each there whole or not at all."""

from __future__ import annotations

import hashlib
import json
import math
import os
import struct
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from vellumd import platform
from vellumd.artefact import Shard
from vellumd.engine.reading import DTYPES
from vellumd.weights.header import SIZES

NAMES = {dtype: name for name, dtype in DTYPES.items()}
"""Safetensors' names of types."""

Layout = Mapping[str, tuple[str, tuple[int, ...]]]
"""Tensors of a file in the order of their bytes: type and shape by name."""


def size_of(layout: Layout) -> int:
    """Bytes of the tensors."""
    return sum(SIZES[dtype] * math.prod(shape) for dtype, shape in layout.values())


def write(
    file: Path, layout: Layout, tensors: Iterable[tuple[str, Tensor]], metadata: Mapping[str, str]
) -> Shard:
    """Write `tensors`, which come in the order of `layout`, one at a time.

    The file appears when it is whole and on the disk. Raises `ValueError` for a tensor
    that is not what the layout says, and `OSError`.
    """
    part = file.with_name(f"{file.name}.part")
    digest = hashlib.sha256()
    with part.open("wb") as opened:

        def put(data: bytes | memoryview) -> None:
            digest.update(data)
            opened.write(data)

        put(_head(layout, metadata))
        expected = iter(layout.items())
        for name, tensor in tensors:
            if (name, (NAMES[tensor.dtype], tuple(tensor.shape))) != next(expected, None):
                raise ValueError(f"{name} is not next in {file.name}")
            flat = tensor.detach().to("cpu").contiguous().reshape(-1).view(torch.uint8)
            put(memoryview(flat.numpy()))  # type: ignore[arg-type]
        if next(expected, None) is not None:
            raise ValueError(f"{file.name} lacks tensors")
        opened.flush()
        os.fsync(opened.fileno())
        size = opened.tell()
    part.replace(file)
    platform.fsync_dir(file.parent)
    return Shard(size=size, sha256=digest.hexdigest())


def _head(layout: Layout, metadata: Mapping[str, str]) -> bytes:
    """Length and JSON, padded with blanks to a multiple of 64 so that tensors are aligned."""
    entries: dict[str, object] = {"__metadata__": dict(metadata)}
    offset = 0
    for name, (dtype, shape) in layout.items():
        end = offset + SIZES[dtype] * math.prod(shape)
        entries[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-(len(text) + 8) % 64)
    return struct.pack("<Q", len(text)) + text
