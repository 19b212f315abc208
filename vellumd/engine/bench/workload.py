"""What is measured: one forward of an edit, and how many operations it is."""

# diffusers annotates in part only.
# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import accelerate
import torch
from diffusers import QwenImageTransformer2DModel
from torch import Tensor

from vellumd import images, platform
from vellumd.engine import latents
from vellumd.engine.transformer import Conditioning

PICTURE = 736, 1011
"""Pixels of the reference job's pictures: 864x1216 for a model of 1024² pixels."""
TEXT = 650
"""Tokens of the reference job's prompt, with three pictures in it."""
BYTES = 5
"""Of a card for each weight of a block while methods are compared: 2 as it is, others for FP8 and
for what the predecessor's method has cast, by `card_h200/reference.json`. Twice on a CPU."""
SPARE = 4 * 10**9
"""Bytes of a card beside those, for three references."""
TIMES = (1000.0, 500.0)
"""Two steps of an edit; what depends on the time alone is computed before the first."""


@dataclass(frozen=True)
class Workload:
    """Tokens of the parts of a forward of a model with `channels` and `layers`."""

    target: tuple[int, int, int]
    references: int
    text: int
    channels: int
    layers: int

    @classmethod
    def of(cls, transformer: Any, area: int, references: int, text: int = TEXT) -> Workload:
        """The reference job's with `references` pictures, at a model's `area` in pixels."""
        width, height = images.reference_size(*PICTURE, area)
        target = 1, height // latents.PATCH, width // latents.PATCH
        layers = len(transformer.transformer_blocks)
        return cls(target, references, text, transformer.inner_dim, layers)

    @property
    def tokens(self) -> int:
        """Those of the target, and of each reference."""
        return self.target[1] * self.target[2]

    @property
    def rows(self) -> int:
        """Rows that attention runs over."""
        return self.text + self.tokens * (1 + self.references)

    def flops(self, *, fresh: bool = True) -> float:
        """Floating-point operations of a forward; without the references' rows if not `fresh`.

        Twelve products of channels by channels a row and block, the MLP's eight among them,
        and two of queries by keys: 13.59 GFLOP a row and 0.737 MFLOP a pair of rows for
        Qwen-Image. Every product is two operations.
        """
        asking = self.rows if fresh else self.text + self.tokens
        linear = 24 * self.channels**2 * asking
        attention = 4 * self.channels * asking * self.rows
        return float(self.layers * (linear + attention))

    def inputs(self, transformer: Any, device: torch.device) -> tuple[Conditioning, Tensor]:
        """Random embeddings and latents, always the same; both prompts are as long."""
        numbers = torch.Generator().manual_seed(0)
        like = transformer.img_in.weight

        def random(rows: int, channels: int) -> Tensor:
            drawn = torch.randn((1, rows, channels), generator=numbers)
            return drawn.to(device, like.dtype)

        prompt = random(self.text, transformer.config.joint_attention_dim)
        references = random(self.tokens * self.references, 64)
        shapes = [self.target] * (1 + self.references)
        tokens, negative = random(self.tokens, 64), torch.flip(prompt, dims=[1])
        return Conditioning(prompt, negative, references, shapes), tokens


def fitting(config: dict[str, Any], device: torch.device) -> int:
    """How many blocks of a transformer of `config` leave room to compare all methods."""
    channels = int(config.get("num_attention_heads", 24)) * int(
        config.get("attention_head_dim", 128)
    )
    # Twelve products of channels by channels for each stream, and six of its modulation.
    block = BYTES * 36 * channels**2
    if device.type == "cuda":
        return max(1, int(torch.cuda.mem_get_info(device)[0] - SPARE) // block)
    return max(1, platform.memory().available // (2 * block))


def random_transformer(config: dict[str, Any], device: torch.device, dtype: torch.dtype) -> Any:
    """A transformer of `config` with random weights, made on `device`."""
    with accelerate.init_empty_weights(include_buffers=False):
        model: Any = QwenImageTransformer2DModel.from_config(
            {key: value for key, value in config.items() if not key.startswith("_")}
        )
    for name, parameter in model.named_parameters():
        norm = "norm" in name and parameter.dim() == 1
        made = torch.empty(parameter.shape, device=device, dtype=dtype)
        made.fill_(1.0) if norm else made.normal_(std=0.02)
        home, _, last = name.rpartition(".")
        setattr(model.get_submodule(home), last, torch.nn.Parameter(made, requires_grad=False))
    return model.eval()
