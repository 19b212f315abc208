"""Edits in large batches while training: what the engine's loop does, many at once."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from vellumd.demo.train.base import Editor
from vellumd.demo.train.data import Batch, Pool, amp
from vellumd.engine.denoise import guide


class Sampler:
    """Follows the velocity of `editor` from noise to latents, guided by `cfg`."""

    def __init__(self, editor: Editor, pool: Pool, batch: Batch, cfg: float) -> None:
        self._editor, self._cfg = editor, cfg
        self._batch = batch
        with amp(pool.device):
            self._text = editor.embed(batch)
            if cfg > 1:
                self._nothing = pool.unasked(batch)
                self._empty = editor.embed(self._nothing)

    def velocity(self, tokens: Tensor, sigma: float) -> Tensor:
        """Of all edits at one noise level."""
        levels = torch.full((len(tokens),), sigma, device=tokens.device)
        with amp(tokens.device):
            found = self._editor.velocity(self._batch, self._text, tokens, levels).float()
            if self._cfg > 1:
                other = self._editor.velocity(self._nothing, self._empty, tokens, levels)
                found = guide(found, other.float(), self._cfg)
        return found

    @torch.no_grad()
    def walk(
        self, tokens: Tensor, sigmas: list[float], generator: torch.Generator | None = None
    ) -> list[Tensor]:
        """The tokens at each of `sigmas`, from noise at the first one on, by Euler's steps.

        With a `generator` each step puts new noise in the place of what is left, as a schedule
        with `stochastic_sampling` does.
        """
        path = [tokens]
        for sigma, following in itertools.pairwise(sigmas):
            velocity = self.velocity(tokens, sigma)
            if generator is None:
                tokens = tokens + (following - sigma) * velocity
            else:
                noise = torch.randn(tokens.shape, generator=generator).to(tokens)
                tokens = (1 - following) * (tokens - sigma * velocity) + following * noise
            path.append(tokens)
        return path
