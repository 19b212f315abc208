"""The demo model: the real classes at toy size, with random weights of a fixed seed.

It is built once into a cache folder in the layout of a real checkpoint and then loaded
like one, so that everything but the picture is real. Sizes follow the toy world's probe.
"""

# diffusers and transformers annotate in part only.
# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

import json
import math
import os
import shutil
import tempfile
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKLQwenImage,
    FlowMatchEulerDiscreteScheduler,
    QwenImageTransformer2DModel,
)
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, trainers
from transformers import (
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2Tokenizer,
    Qwen2VLImageProcessor,
    Qwen2VLProcessor,
    Qwen2VLVideoProcessor,
)

from vellumd import model_card
from vellumd.engine.encode import TEMPLATE

SEED = 20_260
RANK = 4
LIVELY = 2.5
CONTRAST = 0.4
"""Standard deviation of the demo's pictures, where white is 1 and black is −1."""
RECIPE = 1
"""Counts up when this file builds another model, so that stale caches are not used."""

SPECIAL = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>",
    "<|image_pad|>", "<|video_pad|>",
)  # fmt: skip
LINEARS = (
    "attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0",
    "attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj", "attn.to_add_out",
    "img_mlp.net.0.proj", "img_mlp.net.2", "txt_mlp.net.0.proj", "txt_mlp.net.2",
)  # fmt: skip
"""The linears of a block that a Lightning LoRA adapts."""

_PARTS = {
    "processor": ("transformers", "Qwen2VLProcessor"),
    "scheduler": ("diffusers", "FlowMatchEulerDiscreteScheduler"),
    "text_encoder": ("transformers", "Qwen2_5_VLForConditionalGeneration"),
    "tokenizer": ("transformers", "Qwen2Tokenizer"),
    "transformer": ("diffusers", "QwenImageTransformer2DModel"),
    "vae": ("diffusers", "AutoencoderKLQwenImage"),
}


def ensure(cache: Path, beat: Callable[[str, int, int], None]) -> Path:
    """The demo's folder below `cache`, built there if it is not yet.

    It appears by one rename: a crash leaves no half model, and of two processes that
    race the second one uses the first one's.
    """
    folder = cache / f"demo-{RECIPE}-{version('diffusers')}-{version('transformers')}"
    if folder.is_dir():
        return folder
    cache.mkdir(parents=True, exist_ok=True)
    building = Path(tempfile.mkdtemp(prefix=".demo-", dir=cache))
    try:
        build(building, beat)
        _flush(building)
        building.rename(folder)
    except OSError:
        if not folder.is_dir():
            raise
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return folder


def _flush(folder: Path) -> None:
    """Put all files below `folder` on disk, so that no power cut leaves an empty one."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("r+b") as file:
                os.fsync(file.fileno())


def build(folder: Path, beat: Callable[[str, int, int], None]) -> None:
    """Write a whole model into `folder`, telling `beat` after each part."""
    index = {"_class_name": "QwenImageEditPlusPipeline", **_PARTS}
    (folder / "model_index.json").write_text(json.dumps(index, indent=2))
    shutil.copyfile(model_card.DEMO_FOLDER / model_card.FILE, folder / model_card.FILE)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        words = tokenizer()
        parts: dict[str, Any] = {
            "transformer": transformer(),
            "text_encoder": text_encoder(words),
            "vae": vae(),
            "scheduler": scheduler(),
            "tokenizer": words,
            "processor": processor(words),
        }
        for done, (name, part) in enumerate(parts.items(), 1):
            part.save_pretrained(folder / name)
            beat("demo", done, len(parts) + 1)
        (folder / "loras").mkdir()
        save_file(lora(parts["transformer"]), folder / "loras/demo-lightning-8steps.safetensors")
    beat("demo", len(parts) + 1, len(parts) + 1)


def tokenizer() -> Qwen2Tokenizer:
    """A byte-level BPE that knows each word of the template, and bytes for all else.

    So the template's prefix has 64 tokens as with the real vocabulary, and no prompt in
    any language fails.
    """
    plain: Any = Qwen2Tokenizer().backend_tokenizer
    learner = Tokenizer(models.BPE())
    learner.normalizer, learner.pre_tokenizer = plain.normalizer, plain.pre_tokenizer
    trainer = trainers.BpeTrainer(
        vocab_size=2000,
        min_frequency=1,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    text = TEMPLATE.replace("<|im_start|>", "").replace("<|im_end|>", "")
    learner.train_from_iterator([text.format("Picture 1:")], trainer)
    learned = json.loads(learner.to_str())["model"]
    given: dict[str, Any] = {
        "vocab": learned["vocab"],
        "merges": [tuple(pair) for pair in learned["merges"]],
        "eos_token": None,
        "unk_token": None,
    }
    words = Qwen2Tokenizer(**given)
    words.add_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    return words


def processor(words: Qwen2Tokenizer) -> Any:
    """The vision side's preparation, with patches of 16 pixels merged two by two."""
    sizes: dict[str, Any] = {
        "patch_size": 16, "merge_size": 2, "min_pixels": 32 * 32, "max_pixels": 2048 * 2048,
    }  # fmt: skip
    return Qwen2VLProcessor(Qwen2VLImageProcessor(**sizes), words, Qwen2VLVideoProcessor(**sizes))


def text_encoder(words: Qwen2Tokenizer) -> Any:
    """A Qwen2.5-VL of 3 layers and 256 channels."""
    text = {
        "vocab_size": len(words), "hidden_size": 256, "intermediate_size": 512,
        "num_hidden_layers": 3, "num_attention_heads": 8, "num_key_value_heads": 4,
        "max_position_embeddings": 8192, "initializer_range": 0.08,
        "bos_token_id": None, "eos_token_id": None,
        "rope_parameters": {
            "rope_type": "default", "rope_theta": 1_000_000.0, "mrope_section": [4, 6, 6],
        },
    }  # fmt: skip
    vision = {
        "depth": 2, "hidden_size": 128, "intermediate_size": 256, "num_heads": 4,
        "patch_size": 16, "window_size": 128, "out_hidden_size": 256,
        "fullatt_block_indexes": [1],
    }  # fmt: skip
    token: Any = words.convert_tokens_to_ids
    config = Qwen2_5_VLConfig(
        text_config=text,
        vision_config=vision,
        image_token_id=token("<|image_pad|>"),
        video_token_id=token("<|video_pad|>"),
        vision_start_token_id=token("<|vision_start|>"),
        vision_end_token_id=token("<|vision_end|>"),
    )
    return Qwen2_5_VLForConditionalGeneration(config)


def transformer() -> Any:
    """A transformer of 6 blocks with 8 heads of 32 channels.

    The blocks' random linears are made larger, so that prompt, pictures and positions
    show in the result as they do with trained ones.
    """
    model: Any = QwenImageTransformer2DModel(
        num_layers=6,
        num_attention_heads=8,
        attention_head_dim=32,
        joint_attention_dim=256,
        axes_dims_rope=(8, 12, 12),
        zero_cond_t=True,
    )
    with torch.no_grad():
        for module in model.transformer_blocks.modules():
            if isinstance(module, torch.nn.Linear):
                module.weight.mul_(LIVELY)
    return model


def vae() -> Any:
    """A VAE with 16 base channels.

    Its last layer is centred and scaled by a trial, so that random latents become
    visible noise around a medium grey, never a black picture.
    """
    model: Any = AutoencoderKLQwenImage(base_dim=16, num_res_blocks=1)
    last = model.decoder.conv_out
    with torch.no_grad():
        last.bias.zero_()
        last.weight.mul_(0.01)  # so small that the trial is not clamped
        trial = model.decode(torch.randn(1, 16, 1, 16, 16)).sample
        gain = CONTRAST / trial.std(dim=(0, 2, 3, 4))
        last.weight.mul_(gain.view(-1, 1, 1, 1, 1))
        last.bias.copy_(-trial.mean(dim=(0, 2, 3, 4)) * gain)
    return model


def scheduler() -> Any:
    """The base scheduler of Qwen-Image-Edit-2511."""
    return FlowMatchEulerDiscreteScheduler(
        use_dynamic_shifting=True,
        base_shift=0.5,
        max_shift=0.9,
        max_image_seq_len=8192,
        shift_terminal=0.02,
        time_shift_type="exponential",
    )


def lora(model: Any) -> dict[str, torch.Tensor]:
    """A random LoRA under the key names of the Lightning files, alpha half its rank."""
    found = {}
    for index, block in enumerate(model.transformer_blocks):
        for name in LINEARS:
            linear = block.get_submodule(name)
            key = f"transformer_blocks.{index}.{name}"
            down = torch.randn(RANK, linear.in_features) / math.sqrt(linear.in_features)
            found[f"{key}.lora_down.weight"] = down
            found[f"{key}.lora_up.weight"] = torch.randn(linear.out_features, RANK) * 0.2
            found[f"{key}.alpha"] = torch.tensor(RANK / 2)
    return found
