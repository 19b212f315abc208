"""The predecessor's method: diffusers' pipeline, weights cast to FP8 layer by layer, a LoRA.

Linears are e4m3 without scales and cast to bfloat16 for each call, as diffusers' layerwise
casting does it; the LoRA runs beside them through peft.
"""

# diffusers annotates in part only.
# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKLQwenImage,
    FlowMatchEulerDiscreteScheduler,
    QwenImageEditPlusPipeline,
)
from diffusers.pipelines.qwenimage import pipeline_qwenimage_edit_plus as stock
from PIL import Image
from safetensors.torch import load_file

from tests.bench.edits import CUDA, PROMPT, SIZE, Wanted
from vellumd.engine import loading, schedule
from vellumd.images import reference_size

MEGAPIXEL, DEMO_AREA = 1 << 20, 1 << 14


def pipeline(folder: Path, *, tiny: bool = False) -> Any:
    """The stock pipeline over the model in `folder`, as the predecessor holds it."""
    device = torch.device("cuda:0" if CUDA else "cpu")
    parts = loading.load(folder, device, lambda *_: None)
    transformer = parts.transformer
    (file,) = (folder / "loras").glob("*.safetensors")
    transformer.load_lora_adapter(adapter(file, parts.dtype), prefix=None)
    transformer.enable_layerwise_casting(
        storage_dtype=torch.float8_e4m3fn, compute_dtype=parts.dtype
    )
    if tiny:
        stock.VAE_IMAGE_SIZE = stock.CONDITION_IMAGE_SIZE = DEMO_AREA
    # The three-dimensional VAE; the demo ships without the taps that make it so.
    vae = parts.vae if tiny else AutoencoderKLQwenImage.from_pretrained(folder / "vae")
    made = QwenImageEditPlusPipeline(
        FlowMatchEulerDiscreteScheduler.from_config(schedule.LIGHTNING),
        vae.to(device, parts.dtype), parts.text_encoder, parts.processor.tokenizer,
        parts.processor, transformer,
    )  # fmt: skip
    made.set_progress_bar_config(disable=True)
    return made


def adapter(file: Path, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """The LoRA in `file` under peft's names; its alpha is its rank."""
    named = {}
    for name, tensor in load_file(file).items():
        if not name.endswith(".alpha"):
            name = name.replace(".lora_down.", ".lora_A.").replace(".lora_up.", ".lora_B.")
            named[name.removeprefix("transformer.")] = tensor.to(dtype)
    return named


def edit(made: Any, files: list[Path], wanted: Wanted) -> dict[str, Any]:
    """One edit: its seconds, those of a forward of the transformer, and peak memory."""
    width, height = reference_size(*SIZE, DEMO_AREA if wanted.tiny else MEGAPIXEL)
    forwards: list[float] = []
    began = [0.0]

    def now() -> float:
        if CUDA:
            torch.cuda.synchronize()
        return time.perf_counter()

    def before(*_: Any) -> None:
        began[0] = now()

    def after(*_: Any) -> None:
        forwards.append(now() - began[0])

    handles = [
        made.transformer.register_forward_pre_hook(before),
        made.transformer.register_forward_hook(after),
    ]
    if CUDA:
        torch.cuda.reset_peak_memory_stats()
    started = time.perf_counter()
    with torch.inference_mode():
        made(
            image=[Image.open(file) for file in files], prompt=PROMPT, negative_prompt=" ",
            true_cfg_scale=wanted.guidance, num_inference_steps=wanted.steps, width=width,
            height=height, generator=torch.Generator().manual_seed(1),
        )  # fmt: skip
    seconds = now() - started
    for handle in handles:
        handle.remove()
    return {
        "edit_s": round(seconds, 3),
        "forward_s": round(sum(forwards) / len(forwards), 4),
        "outside_s": round(seconds - sum(forwards), 3),
        "peak_gb": round(torch.cuda.max_memory_allocated() / 1e9, 2) if CUDA else None,
    }
