"""The second stage of the demo's training: transformer and text encoder, by flow matching."""

# torch annotates in part only.
# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 (its usual name)
from torch import Tensor

from vellumd.demo.train import forward, model, turns
from vellumd.demo.train.data import Batch, Codec, Pool
from vellumd.demo.train.model import Components
from vellumd.demo.train.optimizer import Optimizer
from vellumd.demo.train.run import Run
from vellumd.demo.train.turns import BATCHES
from vellumd.engine import schedule

POOLS = {1: 400_000, 2: 80_000, 3: 40_000}
"""Edits by number of pictures, of which a training sees each about thirty times."""
LR = 1.0e-3
MUON = 5.0
"""Muon's learning rate in units of LR."""
SHIFT = 2.5
"""How far noise levels lean to the noisy side: sigma = SHIFT·u / (1 + (SHIFT − 1)·u)."""
DROP = 0.1
"""Share of edits that are trained without their prompt, so that guidance works."""


@dataclass(frozen=True)
class Forwards:
    """The two forwards over batches, compiled where there is a GPU."""

    embed: Callable[..., Tensor]
    block: Any


def forwards(device: torch.device) -> Forwards:
    """Those for `device`."""
    if device.type != "cuda":
        return EAGER
    # One graph for each number of pictures and prompt length, with and without gradients.
    torch._dynamo.config.cache_size_limit = 64
    return Forwards(
        torch.compile(_embed, dynamic=False),
        torch.compile(forward.transform_block, dynamic=False),
    )


def _embed(
    encoder: Any, ids: Tensor, patches: Tensor, image_at: Tensor, turns: forward.Rotations
) -> Tensor:
    seen = forward.see(encoder, patches, turns.vision)
    seen = seen.reshape(len(ids), -1, seen.shape[-1])
    return forward.read(encoder, ids, seen, image_at, turns.language)


EAGER = Forwards(_embed, forward.transform_block)


class Editor:
    """Text encoder and transformer over batches of a pool's shape."""

    def __init__(self, parts: Components, pool: Pool, forwards: Forwards) -> None:
        self._encoder, self._transformer = parts.text_encoder, parts.transformer
        self._forwards = forwards
        self._turns = forward.rotations(self._encoder, self._transformer, pool.prompts, pool.device)
        self._image_at = pool.prompts.image_at.to(pool.device)

    def embed(self, batch: Batch) -> Tensor:
        """The prompts' embeddings."""
        patches = forward.to_patches(batch.views.flatten(0, 1))
        return self._forwards.embed(self._encoder, batch.ids, patches, self._image_at, self._turns)

    def velocity(self, batch: Batch, text: Tensor, noisy: Tensor, sigma: Tensor) -> Tensor:
        """Where `noisy` [B, TOKENS, 64] goes at noise levels `sigma` [B]."""
        return forward.transform(
            self._transformer, noisy, batch.references, text, batch.mask, sigma,
            self._turns, self._forwards.block,
        )  # fmt: skip


def sigmas(steps: int) -> list[float]:
    """Noise levels of `steps` steps of the demo's own scheduler, from 1 to 0."""
    config = dict(model.scheduler().config)
    made = schedule.schedule(config, "base", steps, forward.TOKENS, torch.device("cpu"))
    return [float(sigma) for sigma in made.sigmas]


def pools(
    codec: Codec, words: Any, sizes: dict[int, int], seed: int, device: torch.device
) -> dict[int, Pool]:
    """Pools by number of pictures."""
    rng = np.random.default_rng(seed)
    return {n: Pool(words, n, device).fill(codec, size, rng) for n, size in sizes.items()}


def train(
    parts: Components,
    pools: dict[int, Pool],
    folder: Path,
    minutes: float,
    seed: int,
    device: torch.device,
    batches: dict[int, int] = BATCHES,
) -> None:
    """Train text encoder and transformer together to predict noise minus latents.

    Flow matching on straight paths (Liu and others, arXiv 2209.03003; Lipman and others,
    arXiv 2210.02747).
    """
    encoder, transformer = parts.text_encoder, parts.transformer
    optimizer = Optimizer(*split(encoder, transformer), LR, muon=MUON)
    compiled = forwards(device)
    losses = {
        pictures: partial(_loss, Editor(parts, pool, compiled), pool, batches[pictures])
        for pictures, pool in pools.items()
    }
    modules = {"encoder": encoder, "transformer": transformer}
    turns.train(Run(folder, "base", minutes, seed), optimizer, modules, losses, device)


def split(encoder: Any, transformer: Any) -> tuple[list[Tensor], list[Tensor]]:
    """Weights of hidden layers' linears, and all other parameters that are trained."""
    matrices: list[Tensor] = []
    others: list[Tensor] = []
    hidden = ("transformer_blocks.", "language_model.layers.", "visual.blocks.")
    for part in (encoder, transformer):
        for name, weight in part.named_parameters():
            if "lm_head" in name:
                continue
            inside = any(place in name for place in hidden) and "_mod." not in name
            (matrices if inside and weight.dim() == 2 else others).append(weight)
    return matrices, others


def _loss(editor: Editor, pool: Pool, size: int) -> Tensor:
    """Of `size` random edits at random noise levels."""
    batch = pool.random(size, DROP)
    uniform = torch.rand(size, device=pool.device)
    sigma = SHIFT * uniform / (1 + (SHIFT - 1) * uniform)
    noise = torch.randn_like(batch.target)
    share = sigma[:, None, None]
    noisy = (1 - share) * batch.target + share * noise
    velocity = editor.velocity(batch, editor.embed(batch), noisy, sigma)
    return F.mse_loss(velocity.float(), (noise - batch.target).float())
