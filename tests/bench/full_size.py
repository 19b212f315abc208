"""An edit at the real model's size on a GPU, with random weights: speed and memory only.

    python -m tests.bench.full_size --folder /dev/shm/model --out FILE

Writes about 58 GB of random bfloat16 weights in the layout of Qwen-Image-Edit-2511, loads
them through the engine's own code and times edits phase by phase. Random weights prove
nothing about pictures.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from diffusers import AutoencoderKLQwenImage, QwenImageTransformer2DModel
from PIL import Image
from safetensors.torch import save_file
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from tests.bench import record
from vellumd.demo.train import model as demo
from vellumd.engine import pipeline
from vellumd.engine.report import PipeReport
from vellumd.models import ImageRef, LoraRef, ResolvedEdit
from vellumd.protocol import Init

SHARD = 4 << 30
"""Bytes of one weight file."""
SIZE = 736, 1011
"""Pixels of the predecessor's pictures."""


def main() -> None:
    """Build, load, time, write down."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    began = time.monotonic()
    build(args.folder)
    figures: dict[str, Any] = {
        "built_s": round(time.monotonic() - began, 1),
        **measure(args.folder),
    }
    record.keep(figures, args.out)


def build(folder: Path) -> None:
    """A model folder with the configuration of 2511 and random weights."""
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "loras").mkdir(parents=True)
    words = demo.tokenizer()
    words.save_pretrained(folder / "tokenizer")
    demo.processor(words).save_pretrained(folder / "processor")
    demo.scheduler().save_pretrained(folder / "scheduler")
    index = {"_class_name": "QwenImageEditPlusPipeline"}
    (folder / "model_index.json").write_text(json.dumps(index))
    token: Any = words.convert_tokens_to_ids
    with init_empty_weights():
        transformer: Any = QwenImageTransformer2DModel(zero_cond_t=True)  # type: ignore[no-untyped-call]
        encoder = Qwen2_5_VLForConditionalGeneration(encoder_config(token))
    save(transformer, folder / "transformer", transformer.save_config)
    save(encoder, folder / "text_encoder", encoder.config.save_pretrained)
    vae: Any = AutoencoderKLQwenImage()  # type: ignore[no-untyped-call]
    vae.save_pretrained(folder / "vae")
    rank_64 = {name: tensor.bfloat16() for name, tensor in lora(transformer)}
    save_file(rank_64, folder / "loras" / "Random-Lightning-8steps.safetensors")


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


def save(model: torch.nn.Module, folder: Path, config: Any) -> None:
    """Random bfloat16 weights for every parameter, in files of `SHARD` bytes."""
    folder.mkdir()
    config(folder)
    names: dict[str, str] = {}
    shard: dict[str, torch.Tensor] = {}
    size = number = 0

    def flush() -> None:
        nonlocal number, size
        number += 1
        file = f"part-{number:05}.safetensors"
        save_file(shard, folder / file, metadata={"format": "pt"})
        names.update(dict.fromkeys(shard, file))
        shard.clear()
        size = 0

    for name, parameter in model.named_parameters():
        flat = parameter.dim() < 2
        tensor = torch.ones if flat and name.endswith("weight") else torch.zeros
        made = (
            tensor(parameter.shape, dtype=torch.bfloat16)
            if flat
            else (torch.randn(parameter.shape, device="cuda", dtype=torch.bfloat16) * 0.02).cpu()
        )
        shard[name] = made
        size += made.nbytes
        if size > SHARD:
            flush()
    flush()
    part = "model" if "encoder" in folder.name else "diffusion_pytorch_model"
    index = folder / f"{part}.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": names}))


def lora(transformer: Any) -> Any:
    """Names and tensors of a random rank-64 LoRA on the twelve linears of each block."""
    for number, block in enumerate(transformer.transformer_blocks):
        for name in demo.LINEARS:
            linear = block.get_submodule(name)
            key = f"transformer_blocks.{number}.{name}"
            yield f"{key}.lora_down.weight", torch.randn(64, linear.in_features) / 64
            yield f"{key}.lora_up.weight", torch.randn(linear.out_features, 64) * 1e-3
            yield f"{key}.alpha", torch.tensor(64.0)


def measure(folder: Path) -> dict[str, Any]:
    """Load, then edit with 1 and 3 references, guided and not."""
    init = Init(
        engine="", settings={"model": str(folder)}, device="cuda:0", spool=folder, cache=folder
    )
    engine = pipeline.create(init)
    capabilities = engine.load(PipeReport(lambda frame: None, preview=lambda: False))
    figures: dict[str, Any] = {
        "load_s": capabilities.load_s,
        "loaded_gb": round(torch.cuda.memory_allocated() / 1e9, 1),
    }
    file = folder / "input.png"
    Image.effect_noise(SIZE, 90).convert("RGB").save(file)
    for references in (1, 3):
        for scale in (1.0, 3.0):
            name = f"{references}_references_cfg_{scale:g}"
            figures[name] = edit(engine, [file] * references, scale)
            print(name, figures[name], flush=True)
    return figures


def edit(engine: pipeline.QwenEngine, files: list[Path], scale: float) -> dict[str, Any]:
    """One edit of 8 Lightning steps: seconds by phase, seconds a forward, peak memory."""
    picture = ImageRef(sha256="0" * 64, width=SIZE[0], height=SIZE[1])
    wanted = ResolvedEdit(
        model="random", prompt="make it snow " * 40, images=(picture,) * len(files), steps=8,
        true_cfg_scale=scale, seed=1, scheduler="lightning", loras=(LoraRef(name="lightning-8"),),
    )  # fmt: skip
    torch.cuda.reset_peak_memory_stats()
    report = PipeReport(lambda frame: None, preview=lambda: False)
    began = time.monotonic()
    (result,) = list(engine.edit(wanted, files, report, lambda: False))
    seconds = time.monotonic() - began
    assert result.size == SIZE
    timings = report.timings()
    forwards = 8 * (2 if scale > 1 else 1)
    return {
        "edit_s": round(seconds, 2),
        "forward_s": round(timings["denoise"] / forwards, 3),
        "peak_gb": round(torch.cuda.max_memory_allocated() / 1e9, 1),
        "timings_s": timings,
    }


if __name__ == "__main__":
    main()
