"""A model folder of Qwen-Image-Edit-2511's size, 58 GB of random bfloat16.

All tensors are cut from one pool of random numbers, each at another place, and written by
several threads: making them one by one took 82 s on a machine with an H100.
"""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from diffusers import AutoencoderKLQwenImage, QwenImageTransformer2DModel
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from tests.weights import files
from vellumd import model_card
from vellumd.demo.train import model as demo

SHARD = 4 << 30
"""Bytes of one weight file."""
POOL = 1 << 27
"""Random numbers; tensors that are larger go through them several times."""
THREADS = 8
RANK = 64
Shapes = Mapping[str, tuple[int, ...]]


def there(folder: Path, *, tiny: bool = False) -> Path:
    """`folder` with the random model, made unless it is there; `tiny`: with the demo's."""
    if not (folder / "model_index.json").is_file():
        shutil.rmtree(folder, ignore_errors=True)
        if tiny:
            shutil.copytree(model_card.DEMO_FOLDER, folder)
        else:
            build(folder)
    return folder


def build(folder: Path) -> None:
    """The configuration of 2511 and random weights. The index comes last."""
    (folder / "loras").mkdir(parents=True)
    words = demo.tokenizer()
    words.save_pretrained(folder / "tokenizer")
    demo.processor(words).save_pretrained(folder / "processor")
    demo.scheduler().save_pretrained(folder / "scheduler")
    token: Any = words.convert_tokens_to_ids
    with init_empty_weights():
        transformer: Any = QwenImageTransformer2DModel(zero_cond_t=True)  # type: ignore[no-untyped-call]
        encoder = Qwen2_5_VLForConditionalGeneration(encoder_config(token))
    device = "cuda" if torch.cuda.is_available() else "cpu"
    pool = (torch.randn(POOL, device=device) * 0.02).bfloat16().cpu()
    save(transformer, pool, folder / "transformer", transformer.save_config)
    save(encoder, pool, folder / "text_encoder", encoder.config.save_pretrained)
    vae: Any = AutoencoderKLQwenImage()  # type: ignore[no-untyped-call]
    vae.save_pretrained(folder / "vae")
    write(folder / "loras" / "Random-Lightning-8steps.safetensors", dict(lora(transformer)), pool)
    index = {"_class_name": "QwenImageEditPlusPipeline"}
    (folder / "model_index.json").write_text(json.dumps(index))


def encoder_config(token: Any) -> Qwen2_5_VLConfig:
    """Qwen2.5-VL-7B with 16-pixel patches, since the demo's processor makes those."""
    return Qwen2_5_VLConfig(
        text_config={
            "vocab_size": 152_064, "hidden_size": 3584, "intermediate_size": 18_944,
            "num_hidden_layers": 28, "num_attention_heads": 28, "num_key_value_heads": 4,
            "max_position_embeddings": 128_000, "bos_token_id": None, "eos_token_id": None,
            "rope_parameters": {
                "rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24],
            },
        },
        vision_config={
            "depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16,
            "patch_size": 16, "window_size": 128, "out_hidden_size": 3584,
            "fullatt_block_indexes": [7, 15, 23, 31],
        },
        image_token_id=token("<|image_pad|>"),
        video_token_id=token("<|video_pad|>"),
        vision_start_token_id=token("<|vision_start|>"),
        vision_end_token_id=token("<|vision_end|>"),
    )  # fmt: skip


def lora(transformer: Any) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes of a LoRA of rank `RANK` on the twelve linears of each block."""
    for number, block in enumerate(transformer.transformer_blocks):
        for name in demo.LINEARS:
            linear = block.get_submodule(name)
            key = f"transformer_blocks.{number}.{name}"
            yield f"{key}.lora_down.weight", (RANK, linear.in_features)
            yield f"{key}.lora_up.weight", (linear.out_features, RANK)
            yield f"{key}.alpha", ()


def save(model: torch.nn.Module, pool: torch.Tensor, folder: Path, config: Any) -> None:
    """Random weights for every parameter of `model`, in files of about `SHARD` bytes."""
    folder.mkdir()
    config(folder)
    shards: list[dict[str, tuple[int, ...]]] = [{}]
    size = 0
    for name, parameter in model.named_parameters():
        if size > SHARD:
            shards.append({})
            size = 0
        shards[-1][name] = tuple(parameter.shape)
        size += 2 * parameter.numel()
    names: dict[str, str] = {}
    for number, shapes in enumerate(shards, 1):
        file = folder / f"part-{number:05}.safetensors"
        write(file, shapes, pool)
        names |= dict.fromkeys(shapes, file.name)
    part = "model" if "encoder" in folder.name else "diffusion_pytorch_model"
    index = folder / f"{part}.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": names}))


def write(file: Path, shapes: Shapes, pool: torch.Tensor) -> None:
    """A file of bfloat16 tensors: random matrices, ones for norms, zeros for biases."""
    head = files.packed({name: ("BF16", shape) for name, shape in shapes.items()})
    with file.open("wb") as opened, ThreadPoolExecutor(THREADS) as threads:
        opened.write(head)
        opened.flush()
        at, jobs = len(head), []
        for number, (name, shape) in enumerate(shapes.items()):
            jobs.append(threads.submit(_put, opened.fileno(), at, name, shape, number, pool))
            at += 2 * math.prod(shape)
        for job in jobs:
            job.result()


def _put(
    file: int, at: int, name: str, shape: tuple[int, ...], number: int, pool: torch.Tensor
) -> None:
    count = math.prod(shape)
    if len(shape) < 2:
        value = RANK if name.endswith("alpha") else float(name.endswith("weight"))
        pool, number = torch.full((max(1, count),), value, dtype=torch.bfloat16), 0
    data = memoryview(pool.view(torch.uint8).numpy())  # type: ignore[arg-type]
    # Primes apart, so that no two tensors begin alike.
    left, begin = 2 * count, 2 * (number * 1_000_003 % len(pool))
    while left:
        done = os.pwrite(file, data[begin : min(len(data), begin + min(left, 32 << 20))], at)
        at, left, begin = at + done, left - done, (begin + done) % len(data)
