"""The steps of noise that an edit goes down: the model's own, or Lightning's."""

# diffusers and transformers annotate in part only.
# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

import math
from typing import Any, Literal

import numpy as np
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

LIGHTNING: dict[str, Any] = {
    "num_train_timesteps": 1000,
    "use_dynamic_shifting": True,
    "time_shift_type": "exponential",
    "base_shift": math.log(3),
    "max_shift": math.log(3),
    "shift": 1.0,
    "shift_terminal": None,
    "base_image_seq_len": 256,
    "max_image_seq_len": 8192,
}
"""What Lightning LoRAs were distilled with: a shift of 3 at every size, no terminal.

From the model card of lightx2v/Qwen-Image-Edit-2511-Lightning. With the base schedule
the last step starts at 0.02 instead of 0.3 and pictures stay noisy.
"""


def schedule(
    base: dict[str, Any],
    kind: Literal["base", "lightning"],
    steps: int,
    tokens: int,
    device: torch.device,
) -> Any:
    """A fresh FlowMatchEulerDiscreteScheduler for one picture of `tokens` tokens.

    Its timesteps are set. `base` is the model's scheduler configuration. Fresh,
    because a scheduler counts its steps and a cancelled edit would leave it in the middle.
    """
    config = LIGHTNING if kind == "lightning" else base
    if steps == 1:
        # Stretching a single sigma of 1 to a terminal is 0/0.
        config = {**config, "shift_terminal": None}
    scheduler: Any = FlowMatchEulerDiscreteScheduler.from_config(config)
    sigmas = np.linspace(1.0, 1 / steps, steps)
    scheduler.set_timesteps(sigmas=sigmas, mu=_shift(scheduler.config, tokens), device=device)
    scheduler.set_begin_index(0)
    return scheduler


def _shift(config: Any, tokens: int) -> float:
    """The shift for `tokens`, on the line through the configuration's two points."""
    slope = (config.max_shift - config.base_shift) / (
        config.max_image_seq_len - config.base_image_seq_len
    )
    return float(config.base_shift + slope * (tokens - config.base_image_seq_len))
