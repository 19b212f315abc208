"""The VAE alone, in each way that it runs, and its parts."""

# diffusers and torch annotate in part only.
# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from functools import partial
from typing import Any

import torch
from PIL import Image

from tests.bench.edits import CUDA
from tests.bench.median import median, timed
from vellumd.engine import latents, vae_forward
from vellumd.engine.model import Model


def measure(model: Model, picture: Image.Image) -> dict[str, Any]:
    """Milliseconds: both ways and by its parts.

    A row that fails says why, and the others are there all the same.
    """
    found: dict[str, Any] = {"size": picture.size}
    for name, prepared in vaes(model).items():
        found[name] = attempted(partial(vae, model, picture, prepared))
    with torch.backends.cudnn.flags(benchmark=True):
        # CuDNN chooses by timing all that it has, once for each size of a picture.
        found[f"{name}, convolutions timed"] = attempted(partial(vae, model, picture, prepared))
    found["sizes that are new, ms"] = attempted(partial(new_sizes, model, picture))
    found["by its parts"] = attempted(partial(by_parts, model, picture))
    return found


def vaes(model: Model) -> dict[str, Callable[[], object]]:
    """What makes the VAE run in each way; the last one as edits have it on a card."""
    one, parts = model.parts.vae, model.parts
    plain, fast = vae_forward.PLAIN, vae_forward.FAST

    def own(ops: vae_forward.Ops) -> Callable[[], None]:
        return partial(vae_forward.hasten, one, ops)

    def diffusers(layout: torch.memory_format) -> None:
        for part in (one.encoder, one.decoder):
            vars(part).pop("forward", None)
        one.to(memory_format=layout)

    found: dict[str, Callable[[], object]] = {
        "diffusers' forward": partial(diffusers, torch.contiguous_format),
        "diffusers' forward, channels last": partial(diffusers, torch.channels_last),
        "own forward, all plain": own(plain),
    }
    for field in fields(vae_forward.Ops):
        change: dict[str, Any] = {field.name: getattr(fast, field.name)}
        found[f"own forward, fast {field.name} alone"] = own(replace(plain, **change))
    chosen = vae_forward.choose("auto", parts.device, parts.dtype) if CUDA else plain
    return found | {"own forward, what runs": own(chosen)}


def vae(model: Model, picture: Image.Image, prepared: Callable[[], object]) -> dict[str, float]:
    """One picture with its way to the card and back, and the VAE's networks alone."""
    prepared()
    device, dtype, one = model.parts.device, model.parts.dtype, model.parts.vae
    encoded = model.codec.encode(picture, device, dtype)
    unpacked = latents.unpack(latents.pack(encoded), *picture.size)
    pixels = latents.to_pixels(picture, device, dtype)
    found = {
        "encode_ms": median(partial(model.codec.encode, picture, device, dtype)),
        "decode_ms": median(partial(model.codec.decode, unpacked)),
    }
    with torch.inference_mode():
        found["encoder_ms"] = median(partial(one.encoder, pixels))
        found["decoder_ms"] = median(partial(one.decoder, unpacked))
    if CUDA:
        torch.cuda.reset_peak_memory_stats()
        model.codec.decode(unpacked)
        found["decode_peak_gb"] = round(torch.cuda.max_memory_allocated() / 1e9, 2)
    return found


def new_sizes(model: Model, picture: Image.Image) -> dict[str, list[float]]:
    """Milliseconds of one call each: cuDNN has to find kernels for sizes it has not seen."""
    device, dtype, codec = model.parts.device, model.parts.dtype, model.codec
    width, height = picture.size
    found: dict[str, list[float]] = {"encode": [], "decode": []}
    for fewer in (16, 32, 48):
        part = picture.crop((0, 0, width - fewer, height))
        found["encode"].append(round(timed(partial(codec.encode, part, device, dtype)), 2))
        made = latents.unpack(latents.pack(codec.encode(part, device, dtype)), *part.size)
        found["decode"].append(round(timed(partial(codec.decode, made)), 2))
    return found


@torch.inference_mode()
def by_parts(model: Model, picture: Image.Image) -> dict[str, Any]:
    """Conversions, each operation at the largest size that has it, and some convolutions."""
    device, dtype, one = model.parts.device, model.parts.dtype, model.parts.vae
    width, height = picture.size
    narrow, wide = one.decoder.conv_out.in_channels, one.decoder.conv_in.out_channels
    last = one.decoder.up_blocks[-1].resnets[-1]
    halving = next(layer for layer in one.encoder.down_blocks if hasattr(layer, "resample"))

    def features(channels: int, shrink: int = 1) -> torch.Tensor:
        shape = 1, channels, height // shrink, width // shrink
        drawn = torch.randn(shape, device=device, dtype=dtype)
        return drawn.contiguous(memory_format=torch.channels_last)

    x, bias, small = features(narrow), last.conv1.bias, features(wide, 8)
    pixels = latents.to_pixels(picture, device, dtype)
    qkv = features(3 * wide, 8).permute(0, 2, 3, 1).flatten(1, 2).chunk(3, dim=-1)
    rows: dict[str, Callable[[], object]] = {
        "picture to pixels": partial(latents.to_pixels, picture, device, dtype),
        "pixels to picture": partial(latents.to_picture, pixels[0, :, 0]),
        "first convolution": partial(one.encoder.conv_in, pixels),
        "last convolution": partial(one.decoder.conv_out, x[:, :, None]),
        "convolution at full size": partial(vae_forward.convolved, last.conv2, x),
        "the same with its bias": partial(vae_forward.convolved, last.conv2, x, last.conv2.bias),
        "convolution in the middle": partial(
            vae_forward.convolved, one.decoder.mid_block.resnets[0].conv1, small
        ),
        "half the size": partial(halving.resample, x),
    }
    for name, ops in ("plain", vae_forward.PLAIN), ("fast", vae_forward.FAST):
        rows |= {
            f"norm, {name}": partial(ops.norm, x, bias, last.norm2.gamma.flatten(), True),
            f"add, {name}": partial(ops.add, x.clone(), bias, x),
            f"double, {name}": partial(ops.double, features(2 * narrow, 2)),
            f"attend, {name}": partial(ops.attend, *qkv),
        }
    return {name: attempted(partial(median, run)) for name, run in rows.items()}


def attempted(run: Callable[[], Any]) -> Any:
    """What `run` gives, or how it failed."""
    try:
        return run()
    except Exception as failure:  # noqa: BLE001 (a row of its own)
        return {"failed": f"{type(failure).__name__}: {failure}".partition("\n")[0]}
