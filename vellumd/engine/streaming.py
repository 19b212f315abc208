"""Blocks whose weights come from the host, through two buffers, while others compute.

Copies run on a stream of their own, ahead by one block: with three references on an H200 a
copy takes half of the 8.6 ms that a block computes, so it should cost nothing there. On a
CPU the same code moves the same bytes, without streams.
"""

# torch annotates in part only.
# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import Parameter

from vellumd.engine.pinned import on_host
from vellumd.engine.reading import THREADS, Piece, Span, read_span
from vellumd.memory_plan import RING, SLOTS
from vellumd.weights.header import Place

ALIGNED = 16
"""Bytes; what FP8 products ask of their operands' addresses."""


@dataclass(frozen=True)
class Part:
    """Where one parameter lies in a block's bytes."""

    name: str
    offset: int
    nbytes: int
    dtype: torch.dtype
    shape: torch.Size

    def of(self, buffer: Tensor) -> Tensor:
        """The parameter in `buffer`, the bytes of a block."""
        return buffer[self.offset : self.offset + self.nbytes].view(self.dtype).view(self.shape)

    def nothing(self) -> Tensor:
        """What stands in the block while the parameter is elsewhere."""
        return torch.empty(self.shape, dtype=self.dtype, device="meta")


Stored = Sequence[tuple[Part, Place]]
"""A block that lies in files as it is held: its parts, each with its place."""


def layout(block: torch.nn.Module) -> list[Part]:
    """The parameters of `block`, one after the other; only shapes are looked at."""
    parts: list[Part] = []
    end = 0
    for name, parameter in block.named_parameters():
        size = parameter.numel() * parameter.element_size()
        parts.append(Part(name, end, size, parameter.dtype, parameter.shape))
        end += -(-size // ALIGNED) * ALIGNED
    return parts


def size_of(parts: Iterable[Part]) -> int:
    """Bytes of a block."""
    return max(part.offset + -(-part.nbytes // ALIGNED) * ALIGNED for part in parts)


def replace(block: torch.nn.Module, name: str, tensor: Tensor) -> None:
    """Make `tensor` the parameter `name` of `block`."""
    home, _, last = name.rpartition(".")
    block.get_submodule(home)._parameters[last] = Parameter(tensor, requires_grad=False)


def empty(block: torch.nn.Module) -> None:
    """Leave `block` without weights."""
    for part in layout(block):
        replace(block, part.name, part.nothing())


def point(block: torch.nn.Module, buffer: Tensor) -> None:
    """Have the weights of `block` in `buffer`, whatever is there."""
    # By a layout of now: a LoRA's branch puts a level into names, and changes no order.
    for part in layout(block):
        replace(block, part.name, part.of(buffer))


class Host(Protocol):
    """Where the bytes of blocks come from."""

    def copy(self, number: int, target: Tensor) -> None:
        """Have the bytes of block `number` copied to `target`, on the current stream."""

    def bytes_of(self, number: int) -> Tensor:
        """The same, here and now."""

    def close(self) -> None:
        """Let go of threads and memory."""


def read_block(buffer: Tensor, stored: Stored) -> None:
    """Fill `buffer` with the bytes of a block, or of some of its parts."""
    for part, place in stored:
        span = Span(place.file, place.offset, (Piece(0, 0, 0, part.nbytes),))
        read_span(span, [buffer[part.offset : part.offset + part.nbytes]])


class Held:
    """Blocks in the host's memory, pinned where there is a card, if the system allows."""

    def __init__(self, packed: list[Tensor]) -> None:
        """`packed`: the bytes of each block."""
        self._blocks = packed

    @classmethod
    def of(cls, blocks: Sequence[torch.nn.Module], device: torch.device) -> Held:
        """Copies the weights of `blocks`."""

        def one(block: torch.nn.Module) -> Tensor:
            parts = layout(block)
            memory = on_host(size_of(parts), device)  # pinned: a card copies to it by itself
            for part in parts:
                part.of(memory).copy_(block.get_parameter(part.name).data)
            return memory

        with ThreadPoolExecutor(THREADS, "blocks") as threads:
            return cls(list(threads.map(one, blocks)))

    @classmethod
    def of_files(
        cls,
        blocks: Sequence[Stored],
        device: torch.device,
        read: Callable[[int], None] = lambda size: None,
    ) -> Held:
        """Reads `blocks` straight to where they stay.

        Each thread makes the memory for what it reads. `read` is told each block's bytes.
        """

        def one(stored: Stored) -> Tensor:
            size = size_of(part for part, _ in stored)
            return on_host(size, device, partial(read_block, stored=stored))

        held = []
        with ThreadPoolExecutor(THREADS, "blocks") as threads:
            for stored, packed in zip(blocks, threads.map(one, blocks), strict=True):
                held.append(packed)
                read(sum(part.nbytes for part, _ in stored))
        return cls(held)

    def copy(self, number: int, target: Tensor) -> None:
        """See `Host.copy`."""
        packed = self._blocks[number]
        target[: len(packed)].copy_(packed, non_blocking=True)

    def bytes_of(self, number: int) -> Tensor:
        """See `Host.bytes_of`."""
        return self._blocks[number]

    def close(self) -> None:
        """See `Host.close`."""
        self._blocks = []


class Ring:
    """Memory that blocks from files pass through. Those of several kinds share it: each kind has
    all of it while it runs.
    """

    def __init__(self, device: torch.device, most: float = RING) -> None:
        """Without memory yet; of `most` bytes later, if two blocks have room in them."""
        self._device = device
        self._most = int(most)
        self._give_back: Callable[[], None] | None = None
        self.clear()

    def reserve(self, size: int, blocks: int) -> int:
        """Have room for buffers of `size` bytes; how many are of use to so many `blocks`."""
        count = max(2, min(blocks, self._most // size))
        self._grow(count * size)
        return count

    def lend(self, size: int, count: int, give_back: Callable[[], None]) -> list[Tensor]:
        """`count` buffers of `size` bytes, until somebody else wants some: then `give_back` is
        called, after which nobody touches these.
        """
        self._end_loan()
        self._grow(count * size)  # what was reserved is gone after `clear`, or where none came
        self._give_back = give_back
        return list(self._memory[: count * size].split(size))

    def clear(self) -> None:
        """Let go of the memory, until somebody wants some."""
        self._end_loan()
        self._memory = torch.empty(0, dtype=torch.uint8)

    def _grow(self, size: int) -> None:
        if size > len(self._memory):
            self.clear()  # before the new one comes
            self._memory = on_host(size, self._device)

    def _end_loan(self) -> None:
        if self._give_back is not None:
            self._give_back()
        self._give_back = None


class Filed:
    """Blocks in files, read ahead in the order in which they run, through a ring of buffers."""

    def __init__(self, blocks: Sequence[Stored], ring: Ring) -> None:
        """Borrows `ring` when a block is asked for."""
        self._blocks = blocks
        self._ring = ring
        self._size = max(size_of(part for part, _ in stored) for stored in blocks)
        self._count = ring.reserve(self._size, len(blocks))
        self._free: list[Tensor] = []
        self._copied: dict[int, torch.cuda.Event] = {}
        self._staged: dict[int, tuple[Tensor, list[Future[None]]]] = {}
        self._pool = ThreadPoolExecutor(THREADS, "blocks")

    def copy(self, number: int, target: Tensor) -> None:
        """See `Host.copy`."""
        if not self._free and not self._staged:
            self._free = self._ring.lend(self._size, self._count, self._give_back)
        if number not in self._staged:
            self._skip()
            self._stage(number)
        buffer, reads = self._staged.pop(number)
        try:
            wait(reads)
            if any(read.exception() for read in reads):  # too early: the file may be back
                read_block(buffer, self._blocks[number])
            target.copy_(buffer, non_blocking=True)
        except BaseException:
            wait(reads)  # before somebody else gets the buffer
            self._free.append(buffer)
            raise
        if target.is_cuda:
            event = torch.cuda.Event(blocking=True)  # threads that wait for it leave their cores
            event.record(torch.cuda.current_stream(target.device))
            self._copied[buffer.data_ptr()] = event
        self._free.append(buffer)
        for ahead in range(1, self._count + 1):
            following = (number + ahead) % len(self._blocks)
            if self._free and following not in self._staged:
                self._stage(following)

    def _skip(self) -> None:
        """The order was broken, by an edit that was cancelled: what is staged is not next."""
        for buffer, reads in self._staged.values():
            wait([read for read in reads if not read.cancel()])
            self._free.append(buffer)
        self._staged.clear()

    def _give_back(self) -> None:
        """Neither reads nor copies touch the ring any more."""
        self._skip()
        for copied in self._copied.values():
            copied.synchronize()
        self._copied.clear()
        self._free.clear()

    def _stage(self, number: int) -> None:
        """Have a block read, each thread some of its parts: one alone reads 3 GB a second."""
        buffer = self._free.pop(0)
        copied = self._copied.get(buffer.data_ptr())
        reads = [
            self._pool.submit(self._fill, buffer, copied, self._blocks[number][first::THREADS])
            for first in range(THREADS)
        ]
        self._staged[number] = buffer, reads

    def _fill(self, buffer: Tensor, copied: torch.cuda.Event | None, some: Stored) -> None:
        if copied:
            copied.synchronize()
        read_block(buffer, some)

    def bytes_of(self, number: int) -> Tensor:
        """See `Host.bytes_of`."""
        stored = self._blocks[number]
        buffer = torch.empty(size_of(part for part, _ in stored), dtype=torch.uint8)
        read_block(buffer, stored)
        return buffer

    def close(self) -> None:
        """See `Host.close`."""
        self._ring.clear()
        self._pool.shutdown()


class Streamed:
    """Blocks that run in turn, with weights in two buffers on the device.

    Each block's parameters are views of one of the buffers for good; only what is in it
    changes. Right in whatever order blocks are called; quick in their own.
    """

    def __init__(self, blocks: Sequence[torch.nn.Module], host: Host, device: torch.device) -> None:
        """`blocks` are modules that are called; the host has their weights already."""
        self._blocks = list(blocks)
        self._host = host
        self._device = device
        size = max(size_of(layout(block)) for block in blocks)
        self._buffers = [torch.empty(size, dtype=torch.uint8, device=device) for _ in range(SLOTS)]
        self._holds: list[int | None] = [None] * SLOTS
        cuda = device.type == "cuda"
        self._stream = torch.cuda.Stream(device) if cuda else None
        self._ready: list[Any] = [torch.cuda.Event() if cuda else None for _ in range(SLOTS)]
        self._done: list[Any] = [None] * SLOTS
        for number, block in enumerate(self._blocks):
            point(block, self._buffers[number % SLOTS])
        self._handles = [
            handle
            for number, block in enumerate(self._blocks)
            for handle in (
                block.register_forward_pre_hook(self._hook(self._before, number)),
                block.register_forward_hook(self._hook(self._after, number)),
            )
        ]

    def _hook(self, act: Callable[[int], None], number: int) -> Callable[..., None]:
        return lambda *_: act(number)

    def _before(self, number: int) -> None:
        """The block's weights are there before it runs."""
        slot = number % SLOTS
        if self._holds[slot] != number:
            self._load(number)
        if self._stream is not None:
            torch.cuda.current_stream(self._device).wait_event(self._ready[slot])

    def _after(self, number: int) -> None:
        """The block's buffer is free for the next one that uses it."""
        if self._stream is not None:
            event = torch.cuda.Event()
            event.record(torch.cuda.current_stream(self._device))
            self._done[number % SLOTS] = event
        following = number + SLOTS
        self._load(following if following < len(self._blocks) else number % SLOTS)

    def _load(self, number: int) -> None:
        slot = number % SLOTS
        self._holds[slot] = None  # a copy that fails leaves nothing to trust
        if self._stream is None:
            self._host.copy(number, self._buffers[slot])
        else:
            # Whatever ran on the buffer before must be over: also what a cancel cut off.
            over = self._done[slot] or torch.cuda.current_stream(self._device).record_event()
            with torch.cuda.stream(self._stream):
                self._stream.wait_event(over)
                self._host.copy(number, self._buffers[slot])
                self._ready[slot].record(self._stream)
            self._done[slot] = None
        self._holds[slot] = number

    def drop(self) -> None:
        """End it; the blocks have no weights any more."""
        for handle in self._handles:
            handle.remove()
        if self._stream is not None:
            self._stream.synchronize()
        self._buffers = []
        self._host.close()

    def close(self) -> None:
        """End it, with the weights on the device for good."""
        for handle in self._handles:
            handle.remove()
        if self._stream is not None:
            self._stream.synchronize()
        self._buffers = []
        for number, block in enumerate(self._blocks):
            point(block, self._host.bytes_of(number).to(self._device, copy=True))
        self._host.close()


@contextlib.contextmanager
def streamed(blocks: Sequence[torch.nn.Module], device: torch.device) -> Iterator[Streamed]:
    """Have resident `blocks` streamed for a while: the last rung but one when memory runs out."""
    host = Held.of(blocks, device)
    for block in blocks:  # their memory goes before the buffers come
        empty(block)
    stream = Streamed(blocks, host, device)
    try:
        yield stream
    finally:
        stream.close()


class Offloaded:
    """A module whose weights lie in the host's memory but for the time it is used."""

    def __init__(self, module: torch.nn.Module, device: torch.device) -> None:
        """The weights of `module` are on the host."""
        self._device = device
        self._host = [(parameter, parameter.data) for parameter in module.parameters()]

    def __enter__(self) -> None:
        try:
            for parameter, host in self._host:
                parameter.data = host.to(self._device, non_blocking=True, copy=True)
        except BaseException:  # half an encoder would take the room of whatever is tried next
            self.__exit__()
            raise

    def __exit__(self, *_: object) -> None:
        for parameter, host in self._host:
            parameter.data = host
