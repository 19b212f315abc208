"""What a config.json promises is what diffusers and transformers build from it."""

# diffusers annotates in part only.
# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import accelerate
import diffusers
import pytest
import torch
import transformers

from tests.bench import random_model
from vellumd.weights import shapes


def parameters(model: torch.nn.Module) -> shapes.Shapes:
    return {
        name: tuple(parameter.shape)
        for name, parameter in model.named_parameters()
        if not name.startswith("lm_head.")
    }


@pytest.mark.parametrize("size", ["demo", "2511"])
def test_transformer(demo: Path, size: str) -> None:
    """Of the demo and of the real model, all 1,933 tensors."""
    config: dict[str, Any] = {}
    if size == "demo":
        config = json.loads((demo / "transformer/config.json").read_text())
    with accelerate.init_empty_weights():
        model = diffusers.QwenImageTransformer2DModel.from_config(config)
    assert parameters(model) == shapes.transformer(config)


@pytest.mark.parametrize("size", ["demo", "2511"])
def test_text_encoder(demo: Path, size: str) -> None:
    """Newer configurations and, with their keys flat, older ones."""
    if size == "demo":
        config = json.loads((demo / "text_encoder/config.json").read_text())
        kept = transformers.Qwen2_5_VLConfig.from_dict(config)
        flat = {**config["text_config"], "vision_config": config["vision_config"]}
    else:
        kept = random_model.encoder_config(lambda token: 5)
        config = flat = {"vision_config": {"patch_size": 16}}
    with accelerate.init_empty_weights():
        model = transformers.Qwen2_5_VLForConditionalGeneration(kept)
    assert parameters(model) == shapes.text_encoder(config) == shapes.text_encoder(flat)
