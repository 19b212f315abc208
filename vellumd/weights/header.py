"""The header of a safetensors file: where each tensor lies, checked against the file.

Eight bytes of little-endian length, then JSON that gives each tensor's type, shape and
offsets into the rest (safetensors' format description). Nothing of the rest is read.
"""

from __future__ import annotations

import json
import math
import stat
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vellumd import errors

MAX = 100 << 20
"""Bytes of the largest header that is believed; safetensors itself stops there."""

SIZES = {
    "F64": 8, "I64": 8, "U64": 8, "F32": 4, "I32": 4, "U32": 4, "F16": 2, "BF16": 2, "I16": 2,
    "U16": 2, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1, "I8": 1, "U8": 1, "BOOL": 1,
}  # fmt: skip
"""Bytes of one value of each type that can be read here."""

PICKLES = (".bin", ".ckpt", ".pickle", ".pkl", ".pt", ".pth")
"""Endings of files that run code when they are opened."""


@dataclass(frozen=True)
class Place:
    """Where one tensor lies: `offset` in bytes from the file's beginning, `dtype` as stored."""

    file: Path
    offset: int
    dtype: str
    shape: tuple[int, ...]

    @property
    def count(self) -> int:
        """Values in the tensor."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes in the file."""
        return self.count * SIZES[self.dtype]

    @property
    def is_fp8(self) -> bool:
        """Whether the values are eight-bit floats."""
        return self.dtype in ("F8_E4M3", "F8_E5M2")


@dataclass(frozen=True)
class Header:
    """What a file says of itself: a place for each name, and its free-form texts."""

    tensors: dict[str, Place]
    metadata: dict[str, str]


def told(file: Path) -> str:
    """`file` as errors name it: with its folder, since every part's file is called alike."""
    return f"{file.name} ({file.parent.name})"


@contextmanager
def readable(what: str) -> Iterator[None]:
    """Turn what the system says against reading into `ModelInvalid` that names `what`."""
    try:
        yield
    except OSError as error:
        raise errors.ModelInvalid(f"{what} cannot be read ({error.strerror}).") from None


def read(file: Path) -> Header:
    """The header of `file`, found to fit the file to the byte.

    Raises `ModelInvalid` that names the file: for pickles and GGUF, known by content as
    well as by name, and for whatever is cut short, garbled or claims what cannot be.
    """
    with readable(f"The file {told(file)}"):
        state = file.stat()
        size = state.st_size
        if not (stat.S_ISREG(state.st_mode) or stat.S_ISDIR(state.st_mode)):
            raise _wrong(file, "is a pipe or a device")  # opening one may wait for ever
        with file.open("rb") as opened:
            start = opened.read(8)
            _refuse_other_formats(file, start)
            length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
            if length > MAX and size >= 8 + MAX:
                raise _wrong(file, "claims a header of more than 100 MB")
            if not 0 < length <= size - 8:
                raise _wrong(file, "is cut short or no safetensors file")
            text = opened.read(length)
    return _parse(file, text, 8 + length, size)


def _refuse_other_formats(file: Path, start: bytes) -> None:
    if start[:4] == b"GGUF" or file.suffix == ".gguf":
        raise errors.ModelInvalid(
            f"The file {told(file)} is GGUF. safetensors are read: bfloat16, or FP8 with or "
            "without scales."
        )
    zipped, pickled = start[:4] == b"PK\x03\x04", start[:1] == b"\x80" and start[1:2] <= b"\x05"
    if file.suffix in PICKLES or zipped or pickled:
        raise errors.ModelInvalid(
            f"The file {told(file)} is a pickle, which can run any code: it is never opened. "
            "Take the .safetensors file of the same weights."
        )


def _wrong(file: Path, what: str) -> errors.ModelInvalid:
    return errors.ModelInvalid(f"The file {told(file)} is damaged: it {what}.")


def _parse(file: Path, text: bytes, start: int, size: int) -> Header:
    """The header's JSON, every claim checked; `start` and `size` are the data's bounds."""
    try:
        found = json.loads(text, object_pairs_hook=_without_doubles)
    except (ValueError, RecursionError):
        raise _wrong(file, "has a garbled header") from None
    if not isinstance(found, dict):
        raise _wrong(file, "has a garbled header")
    texts = found.pop("__metadata__", None) or {}
    if not isinstance(texts, dict):
        raise _wrong(file, "has a garbled header")
    tensors = {name: _place(file, name, entry, start) for name, entry in found.items()}
    end = start
    for place in sorted(tensors.values(), key=lambda place: (place.offset, place.nbytes)):
        if place.offset != end:
            raise _wrong(file, "has tensors that overlap or leave gaps")
        end += place.nbytes
    if end > size:
        raise _wrong(file, f"is cut short by {end - size:,} bytes")
    if end < size:
        raise _wrong(file, f"is {size - end:,} bytes longer than its tensors")
    return Header(tensors, {str(name): str(value) for name, value in texts.items()})


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """`pairs` as a dict; `ValueError` where two have one name, since readers then differ."""
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name twice")
    return found


def _place(file: Path, name: str, entry: Any, start: int) -> Place:
    if not name.isprintable():  # errors name it, in logs and on terminals
        raise _wrong(file, f"has a tensor with the name {name[:80]!a}")
    try:
        dtype, shape, (begin, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
        numbers = [*shape, begin, end]
    except (KeyError, TypeError, ValueError):
        raise _wrong(file, f"says too little of {name[:80]!r}") from None
    if not isinstance(dtype, str) or dtype not in SIZES:
        raise errors.ModelInvalid(
            f"The file {told(file)} holds values of type {str(dtype)[:20]}, which cannot be read."
        )
    if not all(type(number) is int and number >= 0 for number in numbers):
        raise _wrong(file, f"has an impossible shape for {name[:80]!r}")
    place = Place(file, start + begin, dtype, tuple(shape))
    if end - begin != place.nbytes:
        raise _wrong(file, f"has a shape for {name[:80]!r} that its bytes contradict")
    return place
