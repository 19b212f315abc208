"""The modulation of all blocks, which depends on a step's time alone."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from vellumd.engine.block import BlockMods, Mods, called

CHUNK = 8
"""Steps that are computed together. All of a long schedule would be up to 440 MB; the
weights are 13.6 GB, which are read once a chunk instead of once a forward."""


class StepMods(NamedTuple):
    """One step's modulation: that of each block, and scale and shift [1, channels] at the end."""

    blocks: list[BlockMods]
    scale: Tensor
    shift: Tensor


class Modulation:
    """The modulation at the steps of one edit, computed when a step is first asked for."""

    def __init__(self, stock: Any, times: Tensor) -> None:
        """`stock`: diffusers' transformer; `times` [steps] in its type, from 0 to 1."""
        self._stock = stock
        self._times = times
        self._first = 0
        self._chunk: list[StepMods] = []

    def step(self, number: int) -> StepMods:
        """That of step `number`, from 0."""
        if not self._first <= number < self._first + len(self._chunk):
            # Whichever step is asked for first: the same rows at once have the same bits.
            self._first = number - number % CHUNK
            self._chunk = modulate(self._stock, self._times[self._first : self._first + CHUNK])
        return self._chunk[number - self._first]


def modulate(stock: Any, times: Tensor) -> list[StepMods]:
    """The modulation at each of `times`.

    With `zero_cond_t` the references are modulated as at time 0, where they are clean.
    """
    count = len(times)
    if stock.zero_cond_t:
        times = torch.cat([times, times.new_zeros(1)])
    embedded = F.silu(stock.time_text_embed(times, times))
    image, text = [], []
    for block in stock.transformer_blocks:
        with called(block):
            image.append(block.img_mod[1](embedded))
            text.append(block.txt_mod[1](embedded[:count]))
    ends = stock.norm_out.linear(embedded[:count])
    return [
        StepMods(
            [
                BlockMods(_six(_with_zero(of_image, step, count)), _six(of_text[step : step + 1]))
                for of_image, of_text in zip(image, text, strict=True)
            ],
            *ends[step : step + 1].chunk(2, dim=1),
        )
        for step in range(count)
    ]


def _with_zero(rows: Tensor, step: int, count: int) -> Tensor:
    """The row of `step`, and that of time 0 where there is one."""
    return torch.cat([rows[step : step + 1], rows[count:]])


def _six(rows: Tensor) -> Mods:
    """`rows` [segments, 6 · channels] taken apart."""
    return Mods(*rows.view(len(rows), 6, -1).transpose(0, 1).contiguous().unbind())
