"""Several texts through a language model at once, each layer once for all of them.

Layers may come from the host one after the other, and a pass of 15 GB takes longer than the
texts do. Each text is computed by itself, so its numbers do not depend on the others.
"""

# transformers annotates in part only.
# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

import copy
import inspect
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from vellumd.engine.block import called


@dataclass
class Text:
    """Tokens that are read: `hidden` [1, tokens, channels], from layer to layer.

    `positions` is [3, 1, tokens]. `after` are the keys and values that a text begins with:
    those of an earlier one, which stay as they are, also of one that is read along with it.
    `kept` are those of all its tokens, once it is read.
    """

    hidden: Tensor
    positions: Tensor
    after: Any = None
    kept: Any = field(default_factory=DynamicCache)
    seen: Tensor | None = None
    """Which tokens [1, 1, tokens, all] each token sees; None for all up to itself."""

    def enter(self, layer: int) -> None:
        """Make `layer` of `kept` go on from `after`."""
        if self.after is None:
            return
        # A layer gets new tensors as it grows, so the old ones need no copies.
        before = copy.copy(self.after.layers[layer])
        self.kept.layers[layer : layer + 1] = [before]
        if self.seen is None:
            tokens, past = self.hidden.shape[1], before.keys.shape[2]
            pairs = torch.ones(tokens, past + tokens, dtype=torch.bool, device=self.hidden.device)
            self.seen = pairs.tril(past)[None, None]


def read(language: Any, texts: Sequence[Text]) -> list[Tensor]:
    """The last hidden states [1, tokens, channels] of `texts`, in whose order layers take them.

    `language` is a Qwen2.5-VL text model with scaled dot product attention.
    """
    turns = [language.rotary_emb(text.hidden, text.positions) for text in texts]
    parameters = inspect.signature(type(language.layers[0]).forward).parameters
    cache = "cache" if "cache" in parameters else "past_key_values"  # before transformers 5.24
    for number, layer in enumerate(language.layers):
        with called(layer):
            for text, turn in zip(texts, turns, strict=True):
                text.enter(number)
                text.hidden = layer.forward(
                    text.hidden, attention_mask=text.seen, position_embeddings=turn,
                    use_cache=True, **{cache: text.kept},
                )  # fmt: skip
    return [language.norm(text.hidden) for text in texts]
