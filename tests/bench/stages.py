"""What an edit does outside the transformer, each part alone: VAE, pictures and prompts."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from tests.bench.edits import CUDA, PROMPT, pictures
from vellumd.engine import latents
from vellumd.engine.model import Model
from vellumd.images import reference_size

ROUNDS = 5


def measure(model: Model, folder: Path) -> dict[str, Any]:
    """Milliseconds: the VAE both ways, as it is and with channels last; then the encoder."""
    area = model.card.canvas_area
    files = pictures(folder, "new", 3)
    size = reference_size(*Image.open(files[0]).size, area)
    picture = Image.open(files[0]).resize(size)
    found: dict[str, Any] = {"size": size}
    for name in ("as it is", "channels last"):
        if name == "channels last":
            model.parts.vae.to(memory_format=torch.channels_last)
        found[f"VAE, {name}"] = vae(model, picture)
    model.parts.vae.to(memory_format=torch.contiguous_format)
    found["encoder"] = encoder(model, [Image.open(file) for file in files])
    return found


def vae(model: Model, picture: Image.Image) -> dict[str, float]:
    """Encoding and decoding one picture, with its way to the card and back."""
    device, dtype = model.parts.device, model.parts.dtype
    encoded = model.codec.encode(picture, device, dtype)
    unpacked = latents.unpack(latents.pack(encoded), *picture.size)
    return {
        "encode_ms": median(partial(model.codec.encode, picture, device, dtype)),
        "decode_ms": median(partial(model.codec.decode, unpacked)),
    }


def encoder(model: Model, inputs: list[Image.Image]) -> dict[str, float]:
    """Three pictures and two prompts: all new, a new prompt alone, and nothing new."""
    one, store = model.encoder, model.store
    views, number = one.views(inputs), iter(range(1000))

    def embed(*, forget: bool) -> None:
        if forget:
            store.clear()
        one.embed([f"{PROMPT} {next(number)}", " "], views, model.parts.device)

    store.clear()
    return {
        "both_prompts_ms": median(partial(embed, forget=True)),
        "new_prompt_ms": median(partial(embed, forget=False)),
        "views_ms": median(partial(one.views, inputs)),
    }


def median(run: Callable[[], object]) -> float:
    """Milliseconds, after one round to warm up."""
    times = []
    for _ in range(ROUNDS + 1):
        began = time.perf_counter()
        run()
        if CUDA:
            torch.cuda.synchronize()
        times.append(1000 * (time.perf_counter() - began))
    return round(statistics.median(times[1:]), 2)
