"""Attention of Qwen2.5-VL's vision tower, all of its windows in one call."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from vellumd.engine.qwen_vl import Rotation, mask_of


@dataclass(frozen=True)
class Windows:
    """Where a row of tokens is cut into windows, as a table of equally long ones.

    `rows` [windows, longest] is which token stands where; shorter windows are filled up with
    token 0, which `mask` [windows, 1, 1, longest] keeps from counting; it is None where nothing
    is filled up. `back` [tokens] leads from the table's places to the tokens.
    """

    rows: Tensor
    mask: Tensor | None
    back: Tensor

    @classmethod
    def of(cls, bounds: Tensor, dtype: torch.dtype) -> Windows:
        """Those between `bounds` [windows + 1], which begin with 0 and are read back."""
        edges = bounds.cpu()
        starts, ends = edges[:-1], edges[1:]
        places = starts[:, None] + torch.arange(int((ends - starts).max()))
        filled = places < ends[:, None]
        rows = torch.where(filled, places, 0).to(bounds.device)
        back = filled.flatten().nonzero()[:, 0].to(bounds.device)
        whole = bool(filled.all())
        mask = None if whole else mask_of(filled[:, None, None].to(bounds.device), dtype)
        return cls(rows, mask, back)

    def cut(self, tokens: Tensor) -> Tensor:
        """`tokens` [tokens, ...] as [windows, longest, ...]."""
        if self.mask is None:
            return tokens.view(*self.rows.shape, *tokens.shape[1:])
        return tokens[self.rows]

    def joined(self, table: Tensor) -> Tensor:
        """The tokens of what was cut."""
        tokens = table.flatten(0, 1)
        return tokens if self.mask is None else tokens[self.back]


class Layout:
    """What a tower's blocks have in common, by the tensors that all of them are given.

    The windows of the last few bounds, for which only the first block that meets them waits
    for the card; and the last rotation.
    """

    KEPT = 2
    """Windows, and whole pictures."""

    def __init__(self) -> None:
        self._known: list[tuple[Tensor, Windows]] = []
        self._turned: tuple[Tensor, Rotation] | None = None

    def windows(self, bounds: Tensor, dtype: torch.dtype) -> Windows:
        """The windows between `bounds`."""
        for known, windows in self._known:
            if known is bounds:
                return windows
        windows = Windows.of(bounds, dtype)
        self._known = [*self._known, (bounds, windows)][-self.KEPT :]
        return windows

    def rotation(self, cos: Tensor, sin: Tensor) -> Rotation:
        """That of `cos` and its `sin`."""
        if self._turned is None or self._turned[0] is not cos:
            self._turned = cos, Rotation.of(cos, sin)
        return self._turned[1]


class Attention(torch.nn.Module):
    """Stands for transformers' `Qwen2_5_VLVisionAttention`, with its weights.

    That one waits for the card in each block and attends window by window: three pictures
    are 48 windows in each of 28 blocks, 1,300 calls of a few microseconds' work each.
    """

    def __init__(self, attention: Any, layout: Layout) -> None:
        super().__init__()
        self.qkv = attention.qkv
        self.proj = attention.proj
        self._heads = attention.num_heads
        self._scale = attention.scaling
        self._layout = layout

    def forward(
        self,
        hidden_states: Tensor,
        cu_seqlens: Tensor,
        position_embeddings: tuple[Tensor, Tensor],
        **_: object,
    ) -> Tensor:
        """`hidden_states` [tokens, channels], which see those of their window only."""
        windows = self._layout.windows(cu_seqlens, hidden_states.dtype)
        rotation = self._layout.rotation(*position_embeddings)
        qkv = self.qkv(hidden_states).unflatten(-1, (3 * self._heads, -1))
        # Queries and keys turn together, in float32.
        turned = rotation.turn(qkv[:, : 2 * self._heads]).to(qkv.dtype)
        q, k = windows.cut(turned).transpose(1, 2).chunk(2, dim=1)
        v = windows.cut(qkv[:, 2 * self._heads :]).transpose(1, 2)
        seen = scaled_dot_product_attention(q, k, v, attn_mask=windows.mask, scale=self._scale)
        tokens: Tensor = self.proj(windows.joined(seen.transpose(1, 2).flatten(2)))
        return tokens


def gather_windows(tower: Any) -> None:
    """Have the vision `tower` attend to all windows at once."""
    layout = Layout()
    for block in tower.blocks:
        block.attn = Attention(block.attn, layout)
