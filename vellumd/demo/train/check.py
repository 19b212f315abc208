"""Checks of a finished stage, in large batches, for the log; the judge is what counts."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from vellumd.demo import world
from vellumd.demo.painter import to_bytes
from vellumd.demo.train.base import EAGER, Editor
from vellumd.demo.train.data import Codec, Pool
from vellumd.demo.train.forward import TOKENS
from vellumd.demo.train.model import Components
from vellumd.demo.train.sample import Sampler
from vellumd.demo.verdict import Judge

Success = dict[str, float]


class Check:
    """`each` unseen edits of every kind, with their noise: the same for every recipe."""

    def __init__(
        self, codec: Codec, words: Any, each: int, seed: int, device: torch.device
    ) -> None:
        rng = np.random.default_rng(seed)
        self._codec, self._device = codec, device
        self._judge = Judge()
        noise = torch.Generator().manual_seed(seed)
        self._papers = []
        for kind in world.KINDS:
            edits = world.draw(kind, each, rng)
            pool = Pool(words, world.KINDS[kind].pictures, device).hold(codec, edits)
            self._papers.append(
                (kind, edits, pool, torch.randn(each, TOKENS, 64, generator=noise).to(device))
            )

    @torch.no_grad()
    def take(
        self, parts: Components, sigmas: list[float], cfg: float, *, stochastic: bool
    ) -> Success:
        """Share of right edits by kind, and of `all`, down `sigmas` with guidance `cfg`.

        `stochastic`: each step draws new noise, the same for every recipe.
        """
        found = {}
        generator = torch.Generator().manual_seed(0) if stochastic else None
        for kind, edits, pool, noise in self._papers:
            editor = Editor(parts, pool, EAGER)
            batch = pool.batch(torch.arange(len(edits), device=self._device))
            tokens = Sampler(editor, pool, batch, cfg).walk(noise, sigmas, generator)[-1]
            found[kind] = self._right(edits, self._codec.pictures(tokens))
        return _with_all(found)

    @torch.no_grad()
    def round_trip(self) -> Success:
        """Share of answers that survive the VAE."""
        found = {}
        for kind, edits, pool, _ in self._papers:
            batch = pool.batch(torch.arange(len(edits), device=self._device))
            found[kind] = self._right(edits, self._codec.pictures(batch.target.float()))
        return _with_all(found)

    def _right(self, edits: world.Edits, made: Tensor) -> float:
        pictures = to_bytes(made.cpu().numpy())
        passed = [self._judge.passes(picture, edits, row) for row, picture in enumerate(pictures)]
        return round(float(np.mean(passed)), 4)


def _with_all(kinds: Success) -> Success:
    """`kinds` and their mean: each has as many edits."""
    return {"all": round(float(np.mean(list(kinds.values()))), 4), **kinds}
