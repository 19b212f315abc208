"""The forward that the VAE has on a card, run on the CPU against diffusers' own."""

# diffusers annotates in part only.
# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKLQwenImage
from torch.utils._python_dispatch import TorchDispatchMode

from tests.engine.support import picture
from vellumd import errors
from vellumd.engine import latents, vae_forward
from vellumd.engine.kernels import pixels
from vellumd.engine.trial import Standby
from vellumd.engine.vae import flatten
from vellumd.engine.vae_forward import FAST, PLAIN

CPU = torch.device("cpu")
SMALL: dict[str, Any] = {"base_dim": 16, "num_res_blocks": 1}
PRODUCTS = replace(PLAIN, attend=pixels.attend_products)


def model(**config: Any) -> Any:
    """A flat VAE with random weights, norms' and biases among them."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(5)
        vae: Any = flatten(AutoencoderKLQwenImage(**config))
        for parameter in vae.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.02)
    return vae.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def flat() -> Any:
    return model(**SMALL)


def hastened(vae: Any, ops: vae_forward.Ops = PRODUCTS) -> Any:
    vae = copy.deepcopy(vae)
    vae_forward.hasten(vae, ops)
    return vae


def made(vae: Any, width: int = 128, height: int = 96) -> tuple[torch.Tensor, torch.Tensor]:
    """The latents of a picture, and what comes of other ones."""
    given = latents.to_pixels(picture(width, height), CPU, vae.dtype)
    encoded = vae.encode(given).latent_dist.mode()
    noise = torch.randn(encoded.shape, generator=torch.Generator().manual_seed(2))
    return encoded, vae.decode(noise.to(vae.dtype)).sample


def compare(vae: Any, other: Any, tolerance: float, **size: int) -> None:
    for one, two in zip(made(vae, **size), made(other, **size), strict=True):
        assert two.std() > 0.05 and (two.abs() < 1).float().mean() > 0.9  # differences show
        assert one.shape == two.shape
        assert float((one - two).float().norm() / two.float().norm()) <= tolerance


@pytest.mark.parametrize("tiled", [False, True])
@pytest.mark.parametrize("ops", [PLAIN, PRODUCTS])
@torch.inference_mode()
def test_it_gives_what_diffusers_forward_does(flat: Any, ops: vae_forward.Ops, tiled: bool) -> None:
    """In whole pictures and in tiles, to float32's rounding."""
    stock, own = copy.deepcopy(flat), hastened(flat, ops)
    if tiled:
        for vae in (stock, own):
            vae.enable_tiling(64, 64, 48, 48)
    compare(own, stock, 1e-5)


@torch.inference_mode()
def test_in_bfloat16(flat: Any) -> None:
    """As near to float32's picture as diffusers' forward comes."""
    exact = made(flat)
    stock = copy.deepcopy(flat).to(torch.bfloat16)
    for name, want, of, by in zip(
        ("encode", "decode"), exact, made(stock), made(hastened(stock, PLAIN)), strict=True
    ):
        off, ours = (float((x.float() - want).norm() / want.norm()) for x in (of, by))
        assert ours <= 1.2 * off + 1e-3, name


@torch.inference_mode()
def test_at_the_real_models_width() -> None:
    """All of its layers, a small picture."""
    real = model()
    stock = made(real, 48, 32)
    vae_forward.hasten(real, PRODUCTS)
    for one, two in zip(made(real, 48, 32), stock, strict=True):
        assert float((one - two).norm() / two.norm()) <= 1e-5


class Copies(TorchDispatchMode):
    """Which operations only copy, and which convolutions got something in another layout."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.convolutions = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        name = func.name()
        if name in ("aten::clone", "aten::copy_", "aten::_to_copy"):
            self.found.append(name)
        if name == "aten::convolution":
            self.convolutions += 1
            last = [x.is_contiguous(memory_format=torch.channels_last) for x in args[:2]]
            self.found += [] if all(last) else [f"{name} of {args[0].shape}, {args[0].stride()}"]
        return func(*args, **(kwargs or {}))


@torch.no_grad()  # under inference_mode convolutions would not be seen as such
def test_nothing_changes_its_layout(flat: Any) -> None:
    """Pictures, features and weights are channels last from the first convolution to the last."""
    own = hastened(flat)
    given = latents.to_pixels(picture(128, 96), CPU, own.dtype)
    with Copies() as copies:
        own.encoder(given)
        own.decoder(torch.zeros(1, 16, 1, 12, 16))
    assert copies.convolutions > 40
    assert copies.found == ["aten::clone"]  # the latents, which come as they please


@torch.inference_mode()
def test_more_than_one_frame_is_refused(flat: Any) -> None:
    with pytest.raises(RuntimeError):
        hastened(flat).encode(torch.zeros(1, 3, 5, 32, 32))


def test_attention_some_rows_after_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """However few scores fit at once, and of two pictures."""
    query, key, value = torch.randn(
        3, 2, 50, 24, generator=torch.Generator().manual_seed(1)
    ).unbind()
    exact = pixels.attend(query, key, value)
    for scores in (1, 7 * 2 * 50, 1 << 20):
        monkeypatch.setattr(pixels, "SCORES", scores)
        torch.testing.assert_close(pixels.attend_products(query, key, value), exact)


def test_what_does_not_run_is_left_out() -> None:
    """Each alone; a wanted kernel of Triton's ends the start."""
    assert vae_forward.choose("auto", CPU, torch.float32) == PRODUCTS
    assert vae_forward.choose("auto", CPU, torch.bfloat16) == PLAIN
    assert vae_forward.choose("plain", CPU, torch.float32) == PLAIN
    behind = vae_forward.choose("auto", CPU, torch.float32, standby := Standby())
    x = torch.randn(1, 4, 3, 5)
    assert torch.equal(behind.double(x), PLAIN.double(x)) and not standby.replaced
    assert behind.attend is not PRODUCTS.attend and behind.norm is PLAIN.norm
    with pytest.raises(errors.RecipeUnsupported):
        vae_forward.choose("triton", CPU, torch.float32)


def test_one_that_errs_is_told() -> None:
    """A result a few percent off."""
    off = replace(FAST, add=lambda x, bias, other: PLAIN.add(x, bias, other) * 1.03)
    why = vae_forward.complaint("add", off, CPU, torch.float32)
    assert why is not None and "error of result 0 is 0.03" in why
    for name in ("norm", "add", "double", "attend"):
        assert vae_forward.complaint(name, PLAIN, CPU, torch.bfloat16) is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_byte_is_the_number_that_arithmetic_gives(dtype: torch.dtype) -> None:
    """To the bit, with the pixel's three side by side."""
    image = picture(40, 24)
    exact = torch.from_numpy(np.asarray(image, dtype=np.float32) / 255)
    found = latents.to_pixels(image, CPU, dtype)
    assert torch.equal(found, (2 * exact - 1).permute(2, 0, 1)[None, :, None].to(dtype))
    assert found[0, :, 0].permute(1, 2, 0).is_contiguous()


def test_pixels_of_any_layout_are_one_picture() -> None:
    """And bytes survive the way there and back."""
    image = picture(40, 24)
    there = latents.to_pixels(image, CPU, torch.float32)[0, :, 0]
    for layout in (there, there.contiguous()):
        assert latents.to_picture(layout).tobytes() == image.tobytes()
    with pytest.raises(errors.BadOutput):
        latents.to_picture(torch.full((3, 8, 8), torch.nan))
