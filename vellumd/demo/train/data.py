"""Training data of the demo: edits drawn from the toy world, as latents on the GPU."""

# torch annotates in part only.
# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vellumd.demo import world
from vellumd.demo.painter import Painter
from vellumd.demo.scenes import SIDE, Scenes
from vellumd.demo.train.forward import Prompts
from vellumd.demo.train.model import VIEW
from vellumd.engine.latents import pack, unpack
from vellumd.presets import NEGATIVE

CHUNK = 1024
WEIGHTS = {
    "add": 3.0,
    "elsewhere": 2.5,
    "move": 1.5,
    "another": 2.0,
    "caption": 2.0,
    "replace": 1.5,
}
"""How often a kind is drawn, where not once: those that are hard to learn come more often."""


@dataclass(frozen=True)
class Batch:
    """B edits of equally many pictures P; shapes as in `forward`.

    `views` [B, P, VIEW, VIEW, 3] are bytes, `target` [B, TOKENS, 64] clean latents.
    """

    ids: Tensor
    mask: Tensor
    views: Tensor
    references: Tensor
    target: Tensor


class Pool:
    """Many edits with `pictures` pictures each, encoded once and drawn from at random."""

    def __init__(self, words: Any, pictures: int, device: torch.device) -> None:
        self.kinds = [name for name, kind in world.KINDS.items() if kind.pictures == pictures]
        self.device = device
        self._words = words
        self._prompt: Tensor
        self._views: Tensor
        self._references: Tensor
        self._target: Tensor
        self.pictures = pictures

    def fill(self, codec: Codec, n: int, rng: np.random.Generator) -> Pool:
        """Draw and encode about `n` edits."""
        weights = np.array([WEIGHTS.get(kind, 1.0) for kind in self.kinds])
        counts = np.ceil(n * weights / weights.sum()).astype(int)
        parts: list[tuple[Tensor, ...]] = []
        prompts: list[str] = []
        for kind, count in zip(self.kinds, counts, strict=True):
            for start in range(0, int(count), CHUNK):
                edits = world.draw(kind, min(CHUNK, int(count) - start), rng, training=True)
                prompts += edits.prompts
                parts.append(codec.encode_edits(edits))
        return self._take(parts, prompts)

    def hold(self, codec: Codec, edits: world.Edits) -> Pool:
        """Hold just `edits`, in their order."""
        parts = [codec.encode_edits(edits[at : at + CHUNK]) for at in range(0, len(edits), CHUNK)]
        return self._take(parts, edits.prompts)

    def _take(self, parts: Sequence[tuple[Tensor, ...]], prompts: list[str]) -> Pool:
        known: dict[str, int] = {NEGATIVE: 0}
        rows = [known.setdefault(prompt, len(known)) for prompt in prompts]
        self._prompt = torch.tensor(rows, device=self.device)
        self._references, self._target, self._views = map(torch.cat, zip(*parts, strict=True))
        self.prompts = Prompts(self._words, list(known), self.pictures)
        self._ids, self._mask = (
            part.to(self.device) for part in (self.prompts.ids, self.prompts.mask)
        )
        return self

    def __len__(self) -> int:
        return len(self._prompt)

    def batch(self, rows: Tensor, drop: float = 0.0) -> Batch:
        """The edits of `rows`; a share `drop` of them is asked for nothing, for guidance."""
        prompt = self._prompt[rows]
        prompt = prompt.masked_fill(torch.rand(len(rows), device=self.device) < drop, 0)
        return Batch(
            self._ids[prompt],
            self._mask[prompt],
            self._views[rows],
            self._references[rows],
            self._target[rows],
        )

    def unasked(self, batch: Batch) -> Batch:
        """`batch` without its prompts: what guidance steers away from."""
        rows = len(batch.ids)
        ids, mask = (part[:1].expand(rows, -1) for part in (self._ids, self._mask))
        return replace(batch, ids=ids, mask=mask)

    def random(self, size: int, drop: float = 0.0) -> Batch:
        """`size` edits, drawn with torch's generator of the device."""
        return self.batch(torch.randint(len(self), (size,), device=self.device), drop)


class Codec:
    """Scenes to tokens, by a trained VAE in large batches."""

    def __init__(self, vae: Any, device: torch.device) -> None:
        self._vae = vae
        self._device = device
        self.paint = painter(device)
        config = vae.config
        self._mean, self._std = (
            torch.tensor(values, device=device).view(1, -1, 1, 1, 1)
            for values in (config.latents_mean, config.latents_std)
        )
        self._encode = torch.compile(moments) if device.type == "cuda" else moments
        self._shrink = torch.from_numpy(_shrink()).to(device)

    @torch.no_grad()
    def latents(self, scenes: Scenes) -> tuple[Tensor, Tensor]:
        """Normalised latents [N, 16, 1, 16, 16] of `scenes`, and their pictures."""
        pictures = self.paint(scenes)
        found = []
        for part in pictures.split(CHUNK):
            # On a GPU a whole chunk always, so that nothing is compiled twice.
            missing = CHUNK - len(part) if part.is_cuda else 0
            full = torch.cat([part, part.new_zeros(missing, *part.shape[1:])])
            with amp(self._device):
                found.append(self._encode(self._vae, to_input(full))[0][: len(part)].float())
        return (torch.cat(found) - self._mean) / self._std, pictures

    def encode_edits(self, edits: world.Edits) -> tuple[Tensor, Tensor, Tensor]:
        """References [N, P·TOKENS, 64], target [N, TOKENS, 64], views [N, P, VIEW, VIEW, 3]."""
        references, views = [], []
        for scenes in edits.references:
            found, pictures = self.latents(scenes)
            references.append(pack(found).bfloat16())
            views.append(self.shrink(pictures))
        target = pack(self.latents(edits.target)[0]).bfloat16()
        return torch.cat(references, dim=1), target, torch.stack(views, dim=1)

    @torch.no_grad()
    def pictures(self, tokens: Tensor) -> Tensor:
        """Pictures [N, SIDE, SIDE, 3] from 0 to 1 of tokens [N, TOKENS, 64]."""
        latents = unpack(tokens.float(), SIDE, SIDE) * self._std + self._mean
        made = []
        for part in latents.split(CHUNK // 4):
            with amp(self._device):
                pixels = self._vae.decoder(self._vae.post_quant_conv(part))[:, :, 0]
            made.append((pixels.float() * 0.5 + 0.5).clamp(0, 1).permute(0, 2, 3, 1))
        return torch.cat(made)

    def shrink(self, pictures: Tensor) -> Tensor:
        """The vision tower's copies of pictures [N, SIDE, SIDE, 3]: bytes."""
        rows = torch.einsum("vs,nstc->nvtc", self._shrink, pictures)
        views = torch.einsum("vt,nstc->nsvc", self._shrink, rows)
        return (views.clamp(0, 1) * 255).round().byte()


def _shrink() -> Any:
    """Lanczos from SIDE to VIEW pixels as a matrix: what Pillow does to one axis."""
    identity = Image.fromarray(np.eye(SIDE, dtype=np.float32))
    return np.array(identity.resize((SIDE, VIEW), Image.Resampling.LANCZOS))


def moments(vae: Any, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and log variance of the latents of `pixels`."""
    mean, spread = vae.quant_conv(vae.encoder(pixels)).chunk(2, dim=1)
    return mean, spread.clamp(-30, 20)


def painter(device: torch.device) -> Painter:
    """Paints on `device`."""
    return Painter(lambda array: torch.from_numpy(np.ascontiguousarray(array)).to(device))


def to_input(pictures: Tensor) -> Tensor:
    """Pictures [N, SIDE, SIDE, 3] from 0 to 1 as the VAE takes them: [N, 3, 1, SIDE, SIDE]."""
    return (2 * pictures - 1).permute(0, 3, 1, 2).unsqueeze(2)


def amp(device: torch.device) -> torch.autocast:
    """bfloat16 on a GPU, float32 elsewhere."""
    return torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda")
