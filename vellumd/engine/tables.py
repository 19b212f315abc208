"""Modulation from tables: it depends on a step's time alone, and its weights are a third of all.

Two linears a block, 6.8 billion weights, see one row for the step's time and one for time 0.
For the nine times of an eight-step schedule their answers are 40 MB (docs/performance.md).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from vellumd.engine import precision
from vellumd.engine.reading import Reader
from vellumd.weights import header
from vellumd.weights.checkpoint import Checkpoint

EXTRA = 64
"""Times beyond those of the artefact that are kept: two schedules of 30 steps, 280 MB."""

Weights = Callable[[str], tuple[Tensor, Tensor]]
"""Name of a modulation linear to its weight and bias, on the transformer's device."""


class Tabled(torch.nn.Module):
    """In the place of a linear that meets few inputs: the answer to the nearest one it knows.

    Inputs are computed by the very code that made the table, so the nearest is the same,
    but for rounding where that was another machine.
    """

    def __init__(self, tables: Tables, name: str) -> None:
        super().__init__()
        self._tables = [tables]  # no submodule
        self._name = name

    def forward(self, embedded: Tensor) -> Tensor:
        """`embedded` [rows, channels] to [rows, 6 · channels]."""
        tables = self._tables[0]
        # Without products, which round more than times that are close lie apart.
        distance = torch.cdist(
            embedded.float(), tables.keys.float(), compute_mode="donot_use_mm_for_euclid_dist"
        )
        return tables.rows[self._name][distance.argmin(dim=1)]


class Tables:
    """The modulation of all blocks at the times that are known, and how to know more.

    `times` are those of the transformer, from 0 to 1, rounded to its type. `keys`
    [times, channels] are what the linears are given at each, `rows` what they answer.
    """

    def __init__(self, transformer: Any, weights: Weights) -> None:
        """Without times yet. Takes the linears of `transformer` away."""
        self._transformer = transformer
        self._weights = weights
        self.names = [name for name, _ in modulations(transformer)]
        like = transformer.img_in.weight
        self.times: list[float] = []
        self.keys: Tensor = like.new_empty(0, transformer.inner_dim)
        self.rows: dict[str, Tensor] = {
            name: like.new_empty(0, 6 * transformer.inner_dim) for name in self.names
        }
        self._fixed = 0
        for name in self.names:
            precision.put(transformer, name, Tabled(self, name))

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Take the table of an artefact, as `tensors` gives it."""
        like = self._transformer.img_in.weight
        self.times = [float(time) for time in tensors["times"]]
        self.keys = tensors["keys"].to(like)
        self.rows = {name: tensors[name].to(like) for name in self.names}
        self._fixed = len(self.times)

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """The table as an artefact keeps it."""
        yield "times", torch.tensor(self.times)
        yield "keys", self.keys
        yield from self.rows.items()

    def cover(self, times: Tensor, beat: Callable[[int, int], None]) -> bool:
        """Know the modulation at all of `times` [steps]; whether weights were read for it.

        `beat(done, of)` is told each linear that was read.
        """
        wanted = [*([0.0] if self._transformer.zero_cond_t else []), *map(float, times)]
        new = [time for time in dict.fromkeys(wanted) if time not in self.times]
        if not new:
            return False
        if len(self.times) - self._fixed + len(new) > EXTRA:
            self._forget()
            new = [time for time in dict.fromkeys(wanted) if time not in self.times]
        self._learn(new, beat)
        return True

    def _forget(self) -> None:
        del self.times[self._fixed :]
        self.keys = self.keys[: self._fixed]
        self.rows = {name: rows[: self._fixed] for name, rows in self.rows.items()}

    @torch.inference_mode()
    def _learn(self, times: list[float], beat: Callable[[int, int], None]) -> None:
        embedded = [embed(self._transformer, time) for time in times]
        rows = {}
        for done, name in enumerate(self.names):
            beat(done, len(self.names))
            weight, bias = self._weights(name)
            rows[name] = torch.cat([answer(name, x, weight, bias) for x in embedded])
        # All at once at the end: a failure before leaves a table that is right.
        new = torch.cat([x[:1] for x in embedded])
        self.keys = torch.cat([self.keys, new]) if self.times else new
        self.rows = {
            name: torch.cat([self.rows[name], rows[name]]) if self.times else rows[name]
            for name in self.names
        }
        self.times += times


def embed(transformer: Any, time: float) -> Tensor:
    """What modulation is given at `time` [1 or 2, channels]: with `zero_cond_t`, time 0 below.

    As many rows as diffusers' forward has, because their number changes a product's rounding.
    """
    like = transformer.img_in.weight
    moments = [time, 0.0] if transformer.zero_cond_t else [time]
    times = torch.tensor(moments, dtype=like.dtype, device=like.device)
    return F.silu(transformer.time_text_embed(times, like))


def answer(name: str, embedded: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """The row [1, 6 · channels] of the linear `name`; text is modulated at one time alone."""
    rows = embedded if "img_mod" in name else embedded[:1]
    return F.linear(rows, weight.to(rows), bias.to(rows))[:1]


def modulations(transformer: Any) -> Iterator[tuple[str, torch.nn.Module]]:
    """The linears of modulation, or what is in their place, by name."""
    for number, block in enumerate(transformer.transformer_blocks):
        for side in ("img_mod", "txt_mod"):
            yield f"{precision.BLOCKS}{number}.{side}.1", getattr(block, side)[1]


def in_checkpoint(checkpoint: Checkpoint, device: torch.device) -> Weights:
    """Weights that lie among the transformer's others, read when they are asked for."""

    def weights(name: str) -> tuple[Tensor, Tensor]:
        wanted = [checkpoint.weights[f"{name}.{kind}"] for kind in ("weight", "bias")]
        with Reader(device, threads=2) as reader:
            found = {one.stored.name: one.dense(torch.float32) for one in reader.tensors(wanted)}
        return found[f"{name}.weight"], found[f"{name}.bias"]

    return weights


def in_file(file: Path, device: torch.device) -> Weights:
    """Weights that lie in the safetensors `file`, read when they are asked for."""
    places = header.read(file).tensors

    def weights(name: str) -> tuple[Tensor, Tensor]:
        with Reader(device, threads=2) as reader:
            weight, bias = reader.places([places[f"{name}.weight"], places[f"{name}.bias"]])
        return weight, bias

    return weights


def table_times(schedules: Iterable[Tensor], dtype: torch.dtype) -> Tensor:
    """The times of `schedules` (timesteps from 1000 to 0), as the transformer sees them."""
    times = torch.cat([timesteps.to(dtype) / 1000 for timesteps in schedules])
    return torch.tensor(sorted({float(time) for time in times}))
