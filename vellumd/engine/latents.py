"""Between pictures, latents and the tokens that the transformer works on.

Latents are [1, 16, 1, height/8, width/8]; a token holds a 2x2 patch of them, so a
picture of H x W pixels is (H/16)·(W/16) tokens of 64 channels.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vellumd import errors

SCALE = 8
"""Pixels of a latent's side."""
PATCH = 16
"""Pixels of a token's side."""


def pack(latents: Tensor) -> Tensor:
    """Latents [1, 16, 1, h, w] as tokens [1, (h/2)·(w/2), 64]."""
    batch, channels, _, height, width = latents.shape
    patches = latents.reshape(batch, channels, height // 2, 2, width // 2, 2)
    return patches.permute(0, 2, 4, 1, 3, 5).reshape(batch, -1, channels * 4)


def unpack(tokens: Tensor, width: int, height: int) -> Tensor:
    """Tokens of a picture of `width` x `height` pixels as latents; undoes `pack`."""
    batch, _, channels = tokens.shape
    rows, columns = height // PATCH, width // PATCH
    patches = tokens.reshape(batch, rows, columns, channels // 4, 2, 2).permute(0, 3, 1, 4, 2, 5)
    return patches.reshape(batch, channels // 4, 1, rows * 2, columns * 2)


def noise(
    generator: torch.Generator, width: int, height: int, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """The tokens that an edit starts from, drawn by the CPU's `generator`.

    In this shape and `dtype`, as the stock pipeline does with a CPU generator: the same seed is
    the same noise on every device.
    """
    shape = (1, 1, 16, height // SCALE, width // SCALE)
    drawn = torch.randn(shape, generator=generator, dtype=dtype)
    return pack(drawn.transpose(1, 2)).to(device)


class Codec:
    """The VAE with the normalisation of its latents."""

    def __init__(self, vae: Any) -> None:
        self.vae = vae

    def _moments(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the latents by channel, rounded to `like`'s type."""
        config = self.vae.config
        mean, std = (
            torch.tensor(values).view(1, -1, 1, 1, 1).to(like.device, like.dtype, non_blocking=True)
            for values in (config.latents_mean, config.latents_std)
        )
        return mean, std

    @torch.inference_mode()
    def encode(self, picture: Image.Image, device: torch.device, dtype: torch.dtype) -> Tensor:
        """Normalised latents of an RGB `picture`: the mode, so always the same."""
        latents: Tensor = self.vae.encode(to_pixels(picture, device, dtype)).latent_dist.mode()
        mean, std = self._moments(latents)
        return (latents - mean) / std

    @torch.inference_mode()
    def decode(self, latents: Tensor) -> Image.Image:
        """The picture of normalised `latents`; raises `BadOutput` for not-a-number."""
        latents = latents.to(self.vae.dtype)
        mean, std = self._moments(latents)
        # Division by the inverse: in bfloat16 it rounds otherwise than a product, and it
        # is what the stock pipeline does.
        pixels = self.vae.decode(latents / (1.0 / std) + mean).sample
        return to_picture(pixels[0, :, 0])

    @torch.inference_mode()
    def sketch(self, latents: Tensor, side: int = 32) -> Image.Image:
        """A small picture of `latents`, at most `side` latents wide and high."""
        shrink = min(1.0, side / max(latents.shape[-2:]))
        small = [max(1, round(length * shrink)) for length in latents.shape[-2:]]
        flat = torch.nn.functional.interpolate(latents[:, :, 0], small, mode="area")
        return self.decode(flat[:, :, None])


def tint(latents: Tensor, colours: tuple[tuple[float, float, float], ...]) -> Image.Image:
    """`latents` mapped to RGB channel by channel, a pixel each; the last row is the bias."""
    matrix = torch.tensor(colours, device=latents.device, dtype=torch.float32)
    rgb = torch.einsum("chw,cr->rhw", latents[0, :, 0].float(), matrix[:-1])
    return to_picture(rgb + matrix[-1][:, None, None])


def to_pixels(picture: Image.Image, device: torch.device, dtype: torch.dtype) -> Tensor:
    """An RGB `picture` as [1, 3, 1, height, width] from −1 to 1, channels last in memory.

    Bytes go to the device. There are 256 of them: each is looked up, so that every device has
    the CPU's numbers. Nothing waits for the device: one picture is read while it works on another.
    """
    levels = (2 * (torch.arange(256) / 255) - 1).to(device, dtype, non_blocking=True)
    samples = torch.from_numpy(np.array(picture)).to(device, non_blocking=True)
    return levels[samples.int()].permute(2, 0, 1)[None, :, None]


def to_picture(pixels: Tensor) -> Image.Image:
    """An RGB picture of `pixels` [3, height, width] from −1 to 1."""
    finite = torch.isfinite(pixels).all()
    scaled = (pixels.float() * 0.5 + 0.5).clamp(0, 1) * 255
    samples = scaled.round().to(torch.uint8).permute(1, 2, 0).contiguous()
    samples = samples.to("cpu", non_blocking=True)
    # The card's answer to this comes after the bytes: it is what waits for both.
    if not finite:
        raise errors.BadOutput("The engine made not-a-number values.")
    return Image.fromarray(samples.numpy())
