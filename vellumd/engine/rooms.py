"""Where queries, keys and values of an edit lie, and what of them outlasts a step.

A block finds its room by `enter`. A step that computes the references anew is *fresh*; the
others find the keys and values that the last fresh one left.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from vellumd.engine.linears import TINY
from vellumd.engine.rows import Prompts, Room, Rows
from vellumd.memory_plan import Kept

LARGEST = 127
"""Of int8; its negative is left out, so that both signs are rounded alike."""


class Rooms(Protocol):
    """A room for each block. `block` is its number, `prompts` those of the forward."""

    def enter(self, block: int, prompts: Prompts, *, fresh: bool = True) -> Room:
        """The room of `block` before it runs; unless `fresh`, the references' rows are in it."""
        ...

    def leave(self, block: int, prompts: Prompts, *, fresh: bool = True) -> None:
        """`block` has run; if `fresh`, the references' rows are new."""
        ...


def rooms(rows: Rows, query: Tensor, blocks: int, kept: Kept | None, target: int) -> Rooms:
    """Rooms for `rows`, as large as `query` [1, rows, heads, width].

    References come after `target` rows of a prompt's pictures. `kept`: how theirs outlast a
    step; None where no step uses them again.
    """
    if kept == "whole":
        return Whole([Room(rows, query) for _ in range(blocks)])
    room = Room(rows, query)
    return Passing(room) if kept is None else Small(room, target)


class Passing:
    """One room that the blocks use in turn: nothing outlasts a block."""

    def __init__(self, room: Room) -> None:
        self._room = room

    def enter(self, block: int, prompts: Prompts, *, fresh: bool = True) -> Room:
        """See `Rooms`."""
        return self._room

    def leave(self, block: int, prompts: Prompts, *, fresh: bool = True) -> None:
        """See `Rooms`."""


class Whole:
    """A room for each block, with queries in common: keys and values stay where they are."""

    def __init__(self, rooms: list[Room]) -> None:
        self._rooms = rooms

    def enter(self, block: int, prompts: Prompts, *, fresh: bool = True) -> Room:
        """See `Rooms`."""
        return self._rooms[block]

    def leave(self, block: int, prompts: Prompts, *, fresh: bool = True) -> None:
        """See `Rooms`."""


class Small(Passing):
    """One room; the references' keys and values are kept in 8 bits."""

    def __init__(self, room: Room, target: int) -> None:
        super().__init__(room)
        self._target = target
        self._kept: dict[tuple[int, int], list[Rounded]] = {}

    def _rows(self, prompt: int) -> tuple[Tensor, Tensor]:
        return self._room.pictures((prompt,), self._target, self._room.rows.pictures)

    def enter(self, block: int, prompts: Prompts, *, fresh: bool = True) -> Room:
        """See `Rooms`."""
        if not fresh:
            for prompt in prompts:
                for rows, kept in zip(self._rows(prompt), self._kept[block, prompt], strict=True):
                    kept.into(rows)
        return self._room

    def leave(self, block: int, prompts: Prompts, *, fresh: bool = True) -> None:
        """See `Rooms`."""
        if fresh:
            for prompt in prompts:
                self._kept[block, prompt] = [Rounded.of(rows) for rows in self._rows(prompt)]


class Rounded(NamedTuple):
    """Rows [1, rows, heads, width] as int8, with a scale for each head of each row.

    Of equal size, e4m3 has a relative error of 2.6 %, this one of 0.6 %: the numbers of a head
    in a row are of like size, so an exponent in each of them is wasted.
    """

    small: Tensor
    scale: Tensor

    @classmethod
    def of(cls, rows: Tensor) -> Rounded:
        """`rows` rounded."""
        largest = torch.linalg.vector_norm(rows, torch.inf, dim=-1, keepdim=True)
        scale = (largest.float().clamp(min=TINY) / LARGEST).to(rows)
        # A scale that was rounded down makes 128 of the largest.
        return cls((rows / scale).round_().clamp_(-LARGEST, LARGEST).to(torch.int8), scale)

    def into(self, rows: Tensor) -> None:
        """Put what it stands for into `rows`."""
        torch.mul(self.small.to(rows.dtype), self.scale, out=rows)
