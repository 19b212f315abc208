"""Several texts through Qwen2.5-VL's language model at once, each layer once for all of them.

Layers may come from the host one after the other, and a pass of 15 GB takes longer than the
texts do. Each text is computed by itself, so its numbers do not depend on the others.

The forward is our own over transformers' modules: the same bits on a CPU, half the launches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from vellumd.engine.block import called
from vellumd.engine.content import size_of
from vellumd.engine.qwen_vl import Rotation, mask_of, planless


@dataclass
class Kept:
    """Keys and values of a text's tokens in each layer: [heads that have some, tokens, width]."""

    tokens: int
    layers: list[tuple[Tensor, Tensor]] = field(default_factory=list)

    def bytes(self) -> int:
        """The size of its tensors."""
        return sum(size_of(tensor) for layer in self.layers for tensor in layer)


@dataclass
class Text:
    """Tokens that are read: `hidden` [1, tokens, channels], from layer to layer.

    `positions` is [3, 1, tokens]. `after` are the keys and values that a text goes on from:
    those of an earlier one, which may be read along with it. Where there are none, the text's
    own are `kept`.
    """

    hidden: Tensor
    positions: Tensor
    after: Kept | None = None

    def __post_init__(self) -> None:
        self.kept = Kept(self.hidden.shape[1])


class Sight(NamedTuple):
    """What is the same for a text in all layers: how its heads turn and what its tokens see.

    `mask` [1, 1, tokens, all] is added to attention; None for all up to the token itself.
    """

    rotation: Rotation
    mask: Tensor | None

    @classmethod
    def of(cls, text: Text, rotary: Any) -> Sight:
        """That of `text`; `rotary` is the model's."""
        cos, sin = rotary(text.hidden, text.positions)
        mask = None if text.after is None else causal(text.hidden, text.after.tokens)
        return cls(Rotation.of(cos[0], sin[0]), mask)


def causal(hidden: Tensor, past: int) -> Tensor:
    """The mask by which each token of `hidden` sees `past` ones, and these up to itself."""
    tokens = hidden.shape[1]
    pairs = torch.ones(1, 1, tokens, past + tokens, dtype=torch.bool, device=hidden.device)
    return mask_of(pairs.tril(past), hidden.dtype)


class Layer(NamedTuple):
    """A stock layer's modules, as they are at this moment, and how it cuts its heads."""

    norm: Any
    query: Any
    key: Any
    value: Any
    out: Any
    mlp_norm: Any
    mlp: Any
    width: int
    groups: int
    scale: float

    @classmethod
    def of(cls, stock: Any) -> Layer:
        """Of a `Qwen2_5_VLDecoderLayer`."""
        attn = stock.self_attn
        return cls(
            stock.input_layernorm, attn.q_proj, attn.k_proj, attn.v_proj, attn.o_proj,
            stock.post_attention_layernorm, stock.mlp,
            attn.head_dim, attn.num_key_value_groups, attn.scaling,
        )  # fmt: skip

    def read(self, text: Text, sight: Sight, number: int) -> None:
        """Take `text` through the layer, the model's `number`th."""
        query, key, value = self.project(self.norm(text.hidden), sight.rotation)
        if text.after is None:
            key = key.contiguous()  # without the queries beside it
            text.kept.layers.append((key, value))
            answer = scaled_dot_product_attention(
                query[None], key[None], value[None],
                is_causal=True, scale=self.scale, enable_gqa=True,
            )  # fmt: skip
        else:
            # With a mask, cards have no fast kernel whose heads share keys.
            keys, values = text.after.layers[number]
            answer = scaled_dot_product_attention(
                query[None], self.repeated(keys, key), self.repeated(values, value),
                attn_mask=sight.mask, scale=self.scale,
            )  # fmt: skip
        hidden = text.hidden + self.out(answer.transpose(1, 2).flatten(2))
        text.hidden = hidden + self.mlp(self.mlp_norm(hidden))

    def project(self, normed: Tensor, rotation: Rotation) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values [heads that have some, tokens, width] of `normed`."""
        tokens = normed.shape[1]
        # Queries and keys turn together.
        joined = torch.cat([self.query(normed), self.key(normed)], dim=-1)
        turned = rotation.turn(joined.view(tokens, -1, self.width)).transpose(0, 1)
        value = self.value(normed).view(tokens, -1, self.width).transpose(0, 1)
        return turned[: -len(value)], turned[-len(value) :], value

    def repeated(self, before: Tensor, own: Tensor) -> Tensor:
        """One after the other, once for each head that asks: [1, heads, tokens, width]."""
        parts = [part[:, None].expand(-1, self.groups, -1, -1) for part in (before, own)]
        return torch.cat(parts, dim=2).flatten(0, 1)[None]


@planless
def read(language: Any, texts: Sequence[Text]) -> list[Tensor]:
    """The last hidden states [1, tokens, channels] of `texts`, in whose order layers take them.

    `language` is a Qwen2.5-VL text model.
    """
    sights = [Sight.of(text, language.rotary_emb) for text in texts]
    for number, stock in enumerate(language.layers):
        with called(stock):
            layer = Layer.of(stock)
            for text, sight in zip(texts, sights, strict=True):
                layer.read(text, sight, number)
    return [language.norm(text.hidden) for text in texts]
