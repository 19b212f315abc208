"""Bytes of weight files to tensors on a device, read by several threads.

One thread reads a file from memory at a few gigabytes a second, and copies to a card from
ordinary memory are slower still. So several threads read spans of 16 MiB, for a card into a
ring of pinned buffers from which copies run while the next spans are read: 20 GB in 1.0 s
where mmap and `.to(cuda)` take 3.9 s (H200, 16 cores).
"""

# torch annotates in part only.
# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

import os
import queue
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from vellumd import errors
from vellumd.engine.pinned import on_host
from vellumd.weights import header
from vellumd.weights.checkpoint import Scaling, Weight
from vellumd.weights.header import Place

THREADS = min(8, max(4, (os.cpu_count() or 4) // 2))
"""Half of the cores, from four to eight: 9 GB/s with four of 16 and spans of 32 MiB, 17 with eight,
19 in spans of 16 MiB, 21 with twelve. On few cores more threads take the memory's bandwidth from
each other."""
SPAN = 16 << 20
"""Bytes that are read at a time."""
AHEAD = 16
"""Spans that may be read or copied at once: a quarter of a gigabyte, pinned for a card."""

DTYPES = {
    "BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
}  # fmt: skip
"""Types of weights and scales, by safetensors' names."""


@dataclass(frozen=True)
class StoredTensor:
    """A weight as its file holds it, with its scale: what it means is weight · scale."""

    stored: Weight
    weight: Tensor
    scale: Tensor | None = None

    def dense(self, dtype: torch.dtype) -> Tensor:
        """The weight's meaning as `dtype`: multiplied in float32, then rounded once."""
        if self.scale is None:
            return self.weight.to(dtype)
        return (self.weight.float() * self.spread()).to(dtype)

    def spread(self) -> Tensor:
        """The scale in float32, shaped so that it multiplies the weight."""
        assert self.scale is not None
        scale = self.scale.float()
        if self.stored.scaling is Scaling.SCALAR:
            return scale.reshape(())
        if self.stored.scaling is Scaling.ROW:
            return scale.reshape(-1, 1)
        assert self.stored.block is not None
        for axis, side in enumerate(self.stored.block):
            scale = scale.repeat_interleave(side, axis)
        rows, columns = self.stored.place.shape
        return scale[:rows, :columns]


@dataclass(frozen=True)
class Piece:
    """The part of a span that goes to tensor `number`, there from byte `at` on."""

    number: int
    at: int
    begin: int
    end: int


@dataclass(frozen=True)
class Span:
    """Bytes of a file that are read at once, and whose they are."""

    file: Path
    offset: int
    pieces: tuple[Piece, ...]

    @property
    def nbytes(self) -> int:
        """Bytes to read."""
        return self.pieces[-1].end


def plan(places: Sequence[Place], size: int = SPAN) -> list[Span]:
    """Spans of at most `size` bytes that cover `places` in order, neighbours together."""
    spans: list[Span] = []
    pieces: list[Piece] = []
    file, offset, filled = Path(), 0, 0

    def close() -> None:
        nonlocal pieces, filled
        if pieces:
            spans.append(Span(file, offset, tuple(pieces)))
        pieces, filled = [], 0

    for number, place in enumerate(places):
        done = 0
        while done < place.nbytes:
            position = place.offset + done
            if not pieces or place.file != file or position != offset + filled or filled == size:
                close()
                file, offset = place.file, position
            part = min(place.nbytes - done, size - filled)
            pieces.append(Piece(number, done, filled, filled + part))
            done, filled = done + part, filled + part
    close()
    return spans


class Reader:
    """Reads weights to `device`; as a context, it ends its threads and frees its buffers.

    `read` is told the bytes of each span when it is there. Not for use by several threads.
    """

    def __init__(
        self,
        device: torch.device,
        read: Callable[[int], None] = lambda size: None,
        *,
        threads: int = THREADS,
        span: int = SPAN,
        ahead: int = AHEAD,
        staged: bool | None = None,
    ) -> None:
        """`staged`: whether spans go through the ring of buffers; as the device needs, if None."""
        self.device = device
        self._read = read
        self._span = span
        self._ahead = ahead
        self._pool = ThreadPoolExecutor(threads, "weights")
        cuda = device.type == "cuda"
        self._ring = _Ring(device, span, ahead) if cuda or staged else None

    def __enter__(self) -> Reader:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the threads; nothing is written to a tensor any more."""
        self._pool.shutdown(cancel_futures=True)
        if self._ring is not None:
            self._ring.drain()
            self._ring = None

    def tensors(self, weights: Iterable[Weight]) -> Iterator[StoredTensor]:
        """`weights` as they are stored, in the order in which they lie in their files.

        Raises `ModelInvalid` for a file that has become shorter, or cannot be read.
        """
        inward = sorted(weights, key=lambda weight: (weight.place.file, weight.place.offset))
        scaled = [weight for weight in inward if weight.scale]
        scales = dict(
            zip(
                (weight.name for weight in scaled),
                self.places([weight.scale for weight in scaled if weight.scale]),
                strict=True,
            )
        )
        found = self.places([weight.place for weight in inward])
        for weight, tensor in zip(inward, found, strict=True):
            yield StoredTensor(weight, tensor, scales.get(weight.name))

    def places(self, places: Sequence[Place]) -> Iterator[Tensor]:
        """The tensor at each of `places`, in their order."""
        spans = iter(plan(places, self._span))
        targets: dict[int, Tensor] = {}
        running: deque[tuple[Span, Future[Any]]] = deque()
        filled = [0] * len(places)

        def go_on() -> None:
            while len(running) < self._ahead and (span := next(spans, None)):
                for piece in span.pieces:
                    if piece.number not in targets:
                        targets[piece.number] = self._empty(places[piece.number])
                running.append((span, self._pool.submit(self._fetch, span, targets, self._mark())))

        try:
            for number, place in enumerate(places):
                go_on()
                while filled[number] < place.nbytes:
                    span, future = running.popleft()
                    self._await(future.result())
                    for piece in span.pieces:
                        filled[piece.number] += piece.end - piece.begin
                    self._read(span.nbytes)
                    go_on()
                tensor = targets.pop(number, None)
                yield _typed(self._empty(place) if tensor is None else tensor, place)
        finally:
            # Whoever stops early must not free memory that a thread still writes to.
            for _, future in running:
                if not future.cancel():
                    future.exception()
            if running and self._ring is not None:
                self._ring.drain()

    def _empty(self, place: Place) -> Tensor:
        return torch.empty(place.nbytes, dtype=torch.uint8, device=self.device)

    def _mark(self) -> torch.cuda.Event | None:
        """Where the device's own work stands: memory given out now is free from there on."""
        if self.device.type != "cuda":
            return None
        event = torch.cuda.Event()
        event.record(torch.cuda.current_stream(self.device))
        return event

    def _fetch(
        self, span: Span, targets: dict[int, Tensor], after: torch.cuda.Event | None
    ) -> torch.cuda.Event | None:
        """Read `span` into `targets`; on a card, what tells that its copies are done."""
        if self._ring is not None:
            return self._ring.fetch(span, targets, after)
        read_span(span, (part_of(piece, targets) for piece in span.pieces))
        return None

    def _await(self, event: torch.cuda.Event | None) -> None:
        if event is not None:
            torch.cuda.current_stream(self.device).wait_event(event)


class _Ring:
    """Buffers that spans are read into and copied from, each used again once it is copied."""

    def __init__(self, device: torch.device, size: int, count: int) -> None:
        self._device = device
        self._size = size
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        # Pinning takes time: each buffer is made by the thread that first needs it.
        self._free: queue.SimpleQueue[tuple[Tensor | None, Any]] = queue.SimpleQueue()
        for _ in range(count):
            self._free.put((None, None))

    def fetch(
        self, span: Span, targets: dict[int, Tensor], after: torch.cuda.Event | None
    ) -> torch.cuda.Event | None:
        """Read `span`, then have it copied, once `after` is over, to `targets`."""
        buffer, copied = self._free.get()
        try:
            if copied is not None:
                copied.synchronize()
            if buffer is None:
                buffer = on_host(self._size, self._device)
            read_span(span, [buffer[: span.nbytes]])
            copied = self._copy(span, buffer, targets, after)
        finally:
            self._free.put((buffer, copied))
        return copied

    def _copy(
        self,
        span: Span,
        buffer: Tensor,
        targets: dict[int, Tensor],
        after: torch.cuda.Event | None,
    ) -> torch.cuda.Event | None:
        if self._stream is None:
            self._move(span, buffer, targets)
            return None
        with torch.cuda.stream(self._stream):
            if after is not None:
                self._stream.wait_event(after)
            self._move(span, buffer, targets)
            copied = torch.cuda.Event()
            copied.record(self._stream)
        return copied

    @torch.inference_mode()
    def _move(self, span: Span, buffer: Tensor, targets: dict[int, Tensor]) -> None:
        # A thread is in no inference mode though the one that waits for it is, and tensors
        # made in that mode are written in it alone.
        for piece in span.pieces:
            part_of(piece, targets).copy_(buffer[piece.begin : piece.end], non_blocking=True)

    def drain(self) -> None:
        """Wait until no copy runs."""
        if self._stream is not None:
            self._stream.synchronize()


def part_of(piece: Piece, targets: dict[int, Tensor]) -> Tensor:
    """The bytes of its tensor that a piece fills."""
    return targets[piece.number][piece.at : piece.at + piece.end - piece.begin]


def read_span(span: Span, targets: Iterable[Tensor]) -> None:
    """Fill `targets`, one after the other, with the bytes of `span`.

    Raises `ModelInvalid` where the file ends too early or cannot be read.
    """
    told = f"The file {header.told(span.file)}"
    with header.readable(told), span.file.open("rb", buffering=0) as opened:
        opened.seek(span.offset)
        for target in targets:
            view = memoryview(target.numpy())  # type: ignore[arg-type]
            while view:
                if not (count := opened.readinto(view)):
                    raise errors.ModelInvalid(f"{told} is cut short.")
                view = view[count:]


def _typed(flat: Tensor, place: Place) -> Tensor:
    return flat.view(DTYPES[place.dtype]).view(place.shape)
