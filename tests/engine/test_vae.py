"""The two-dimensional VAE against diffusers' own, and how its files are read."""

# diffusers annotates in part only.
# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import accelerate
import pytest
import torch
from diffusers import AutoencoderKLQwenImage
from safetensors.torch import load_file, save_file

from vellumd import errors
from vellumd.engine import loading
from vellumd.engine.vae import flatten

CPU = torch.device("cpu")
SMALL: dict[str, Any] = {"base_dim": 16, "num_res_blocks": 1}
KERNEL = "encoder.conv_in.weight"
TIME_KERNEL = "encoder.down_blocks.3.time_conv.weight"

Tensors = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def stock() -> Any:
    """Diffusers' model with random weights, those of all temporal taps among them."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(5)
        vae: Any = AutoencoderKLQwenImage(**SMALL)
        for parameter in vae.parameters():
            if parameter.dim() > 1:
                parameter.add_(torch.randn_like(parameter) * 0.05)
    return vae.eval().requires_grad_(False)


@pytest.fixture
def pixels() -> torch.Tensor:
    return torch.rand((1, 3, 1, 96, 128), generator=torch.Generator().manual_seed(1)) * 2 - 1


@pytest.fixture
def folder(stock: Any, demo: Path, tmp_path: Path) -> Path:
    """The demo's folder with the stock VAE as diffusers saves it."""
    copied = Path(shutil.copytree(demo, tmp_path / "model"))
    shutil.rmtree(copied / "vae")
    stock.save_pretrained(copied / "vae")
    return copied


def file_of(folder: Path) -> Path:
    return next((folder / "vae").glob("*.safetensors"))


def load(folder: Path) -> Any:
    return loading.load(folder, CPU, lambda *_: None).vae


def difference(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).abs().max())


@pytest.mark.parametrize("tiled", [False, True])
@torch.inference_mode()
def test_flat_is_the_stock_model(stock: Any, pixels: torch.Tensor, tiled: bool) -> None:
    """Encoding and decoding agree in whole pictures and in tiles, and leave stock as it is."""
    stock, flat = copy.deepcopy(stock), flatten(copy.deepcopy(stock))
    if tiled:
        for vae in (stock, flat):
            vae.enable_tiling(64, 64, 48, 48)
    latents = stock.encode(pixels).latent_dist.mode()
    assert latents.std() > 0.05
    assert difference(flat.encode(pixels).latent_dist.mode(), latents) <= 1e-5
    noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(2))
    picture = stock.decode(noise).sample
    assert picture.std() > 0.05
    assert (picture.abs() < 1).float().mean() > 0.9  # not clamped: a difference would show
    assert difference(flat.decode(noise).sample, picture) <= 1e-5


def test_flat_has_no_time(stock: Any, pixels: torch.Tensor) -> None:
    """Names stay, kernels lose the time, two thirds of the weights go; videos are refused."""
    flat = flatten(copy.deepcopy(stock))
    before, after = stock.state_dict(), flat.state_dict()
    assert set(after) == {name for name in before if ".time_conv." not in name}
    assert torch.equal(after[KERNEL], before[KERNEL][:, :, -1])
    assert max(tensor.dim() for tensor in after.values()) == 4
    size = [sum(tensor.numel() for tensor in all.values()) for all in (after, before)]
    assert size[0] < 0.4 * size[1]
    with pytest.raises(RuntimeError):
        flat.encode(pixels.repeat(1, 1, 5, 1, 1))


def test_a_model_without_weights_is_flattened(stock: Any) -> None:
    """Under `init_empty_weights` no kernel is made, and the shapes are those of the real one."""
    with accelerate.init_empty_weights():
        empty: Any = flatten(AutoencoderKLQwenImage(**SMALL))
    assert all(parameter.is_meta for parameter in empty.parameters())
    real = flatten(copy.deepcopy(stock)).state_dict()
    assert {k: v.shape for k, v in empty.state_dict().items()} == {
        k: v.shape for k, v in real.items()
    }


@torch.inference_mode()
def test_stock_and_flat_files_give_one_picture(
    stock: Any, folder: Path, pixels: torch.Tensor
) -> None:
    """A real checkpoint's file and a flat one load to the same model: the stock picture."""
    from_stock = load(folder)
    save_file(flatten(copy.deepcopy(stock)).state_dict(), file_of(folder), {"format": "pt"})
    from_flat = load(folder)
    pictures = [vae(pixels).sample for vae in (from_stock, from_flat, stock)]
    assert torch.equal(pictures[0], pictures[1])
    assert difference(pictures[0], pictures[2]) <= 1e-5
    assert all(parameter.is_contiguous() for parameter in from_stock.parameters())


def one_tap(tensors: Tensors) -> None:
    tensors[KERNEL] = tensors[KERNEL][:, :, -1:].contiguous()


def four_taps(tensors: Tensors) -> None:
    tensors[KERNEL] = torch.cat([tensors[KERNEL], tensors[KERNEL][:, :, :1]], dim=2)


def other_kernel(tensors: Tensors) -> None:
    tensors[KERNEL] = tensors[KERNEL][..., :1].contiguous()


def other_flat_kernel(tensors: Tensors) -> None:
    tensors[KERNEL] = tensors[KERNEL][:, :, -1, :, :1].contiguous()


def other_time_kernel(tensors: Tensors) -> None:
    tensors[TIME_KERNEL] = tensors[TIME_KERNEL][:1].clone()


def unknown_time_kernel(tensors: Tensors) -> None:
    tensors["encoder.down_blocks.1.time_conv.weight"] = tensors[TIME_KERNEL].clone()


def unknown(tensors: Tensors) -> None:
    tensors["encoder.other"] = torch.ones(1)


def missing(tensors: Tensors) -> None:
    del tensors[KERNEL]


@pytest.mark.parametrize(
    "damage",
    [
        one_tap,
        four_taps,
        other_kernel,
        other_flat_kernel,
        other_time_kernel,
        unknown_time_kernel,
        unknown,
        missing,
    ],
)
def test_other_tensors_are_refused(folder: Path, damage: Callable[[Tensors], None]) -> None:
    """A tensor that is neither the stock model's nor the flat one's ends in `model_invalid`."""
    tensors = load_file(file_of(folder))
    damage(tensors)
    save_file(tensors, file_of(folder), {"format": "pt"})
    with pytest.raises(errors.ModelInvalid, match="vae"):
        load(folder)


def test_the_demos_vae_is_stored_flat(demo: Path) -> None:
    """What ships holds no dead temporal taps, under diffusers' own names."""
    tensors = load_file(file_of(demo))
    config = json.loads((demo / "vae/config.json").read_text())
    assert config["_class_name"] == "AutoencoderKLQwenImage"
    assert max(tensor.dim() for tensor in tensors.values()) == 4
