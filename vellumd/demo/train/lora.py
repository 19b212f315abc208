"""The third stage of the demo's training: a LoRA that does guided edits in eight steps.

The student takes each of Lightning's steps as the guided teacher takes it in several
smaller ones, from the teacher's own states (a progressive distillation after Salimans and
Ho, arXiv 2202.00512, with guidance folded in after Meng and others, arXiv 2210.03142).
"""

# torch annotates in part only.
# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

import itertools
import math
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 (its usual name)
from torch import Tensor, nn

from vellumd.demo.train import base, turns
from vellumd.demo.train.base import Editor
from vellumd.demo.train.data import Pool
from vellumd.demo.train.forward import TOKENS
from vellumd.demo.train.model import LINEARS, STEPS, Components
from vellumd.demo.train.optimizer import Optimizer
from vellumd.demo.train.run import Run
from vellumd.demo.train.sample import Sampler
from vellumd.demo.train.turns import BATCHES
from vellumd.engine import schedule

RANK = 16
WITHIN = 3
"""The teacher's steps within one of the student's."""
CHUNK = 1000
PATHS = {1: 30_000, 2: 8_000, 3: 4_000}
"""Edits whose way from noise to picture the teacher shows, by number of pictures."""
LR = 2e-3
DROP = 0.15
"""Share of examples without their prompt, so that the LoRA can be guided as well."""


class Adapted(nn.Module):
    """A frozen linear with a low-rank branch, which starts as nothing."""

    def __init__(self, linear: Any) -> None:
        super().__init__()
        self.linear = linear.requires_grad_(False)
        device = linear.weight.device
        down = torch.randn(RANK, linear.in_features, device=device)
        self.down = nn.Parameter(down / math.sqrt(linear.in_features))
        self.up = nn.Parameter(torch.zeros(linear.out_features, RANK, device=device))

    def forward(self, hidden: Tensor) -> Tensor:
        """Linear plus branch."""
        found: Tensor = self.linear(hidden) + F.linear(F.linear(hidden, self.down), self.up)
        return found


def adapt(transformer: Any) -> dict[str, Adapted]:
    """Give `transformer` a branch at each linear of its blocks; by the linear's name."""
    transformer.requires_grad_(False)
    found = {}
    for index, block in enumerate(transformer.transformer_blocks):
        for name in LINEARS:
            adapted = Adapted(block.get_submodule(name))
            block.set_submodule(name, adapted)
            found[f"transformer_blocks.{index}.{name}"] = adapted
    return found


def release(transformer: Any, adapters: dict[str, Adapted]) -> None:
    """Take the branches off again."""
    for name, adapted in adapters.items():
        transformer.set_submodule(name, adapted.linear)


def tensors(adapters: dict[str, Adapted]) -> dict[str, Tensor]:
    """The LoRA under the key names of the Lightning files; alpha is the rank."""
    found = {}
    for name, adapted in adapters.items():
        found[f"{name}.lora_down.weight"] = adapted.down.detach()
        found[f"{name}.lora_up.weight"] = adapted.up.detach()
        found[f"{name}.alpha"] = torch.tensor(float(RANK))
    return found


def sigmas() -> list[float]:
    """Lightning's noise levels, from 1 to 0."""
    made = schedule.schedule({}, "lightning", STEPS, TOKENS, torch.device("cpu"))
    return [float(sigma) for sigma in made.sigmas]


def train(
    parts: Components,
    pools: dict[int, Pool],
    folder: Path,
    minutes: float,
    seed: int,
    device: torch.device,
    batches: dict[int, int] = BATCHES,
    paths: dict[int, int] = PATHS,
) -> dict[str, Adapted]:
    """Train a LoRA for the transformer, leave it attached, and return its branches.

    The teacher is guided as the model's card says. Showing the ways counts as none of the
    `minutes`.
    """
    cfg = parts.card.true_cfg_scale
    run = Run(folder, "lora", minutes, seed)
    compiled = base.forwards(device)
    editors = {n: Editor(parts, pool, compiled) for n, pool in pools.items()}
    shown = {n: Paths(editors[n], pool, cfg, paths[n]) for n, pool in pools.items()}
    run.tell(shown=sum(len(path) for path in shown.values()))
    adapters = adapt(parts.transformer)
    compiled = base.forwards(device)
    losses = {
        n: partial(shown[n].loss, Editor(parts, pool, compiled), batches[n])
        for n, pool in pools.items()
    }
    branches = nn.ModuleDict({key.replace(".", "/"): one for key, one in adapters.items()})
    trained = [weight for weight in branches.parameters() if weight.requires_grad]
    optimizer = Optimizer([], trained, LR, decay=0.0)
    turns.train(run, optimizer, {"branches": branches}, losses, device)
    return adapters


class Paths:
    """The teacher's ways from noise to picture: its tokens at each of the student's levels."""

    def __init__(self, editor: Editor, pool: Pool, cfg: float, n: int) -> None:
        self._pool = pool
        self._levels = torch.tensor(sigmas(), device=pool.device)
        self._rows = torch.randperm(len(pool), device=pool.device)[:n]
        parts = []
        for rows in self._rows.split(CHUNK):
            sampler = Sampler(editor, pool, pool.batch(rows), cfg)
            noise = torch.randn(len(rows), TOKENS, 64, device=pool.device)
            path = sampler.walk(noise, _finer(sigmas()))[::WITHIN]
            parts.append(torch.stack(path, dim=1).bfloat16())
        self._tokens = torch.cat(parts)

    def __len__(self) -> int:
        return len(self._rows)

    def loss(self, editor: Editor, size: int) -> Tensor:
        """How far the student's steps are from the teacher's, over `size` of them."""
        device = self._pool.device
        picked = torch.randint(len(self), (size,), device=device)
        step = torch.randint(STEPS, (size,), device=device)
        sigma, following = self._levels[step], self._levels[step + 1]
        start, end = (self._tokens[picked, at].float() for at in (step, step + 1))
        wanted = (start - end) / (sigma - following)[:, None, None]
        batch = self._pool.batch(self._rows[picked], DROP)
        with torch.no_grad():
            text = editor.embed(batch)
        return F.mse_loss(editor.velocity(batch, text, start, sigma).float(), wanted)


def _finer(levels: list[float]) -> list[float]:
    """`levels` with WITHIN steps in place of each."""
    found = []
    for start, end in itertools.pairwise(levels):
        found += [start + (end - start) * part / WITHIN for part in range(WITHIN)]
    return [*found, levels[-1]]
