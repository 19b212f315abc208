"""Attention of Qwen2.5-VL's vision tower, all of its windows in one call."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers.models.qwen2_5_vl import modeling_qwen2_5_vl as stock


@dataclass(frozen=True)
class Windows:
    """Where a row of tokens is cut into windows, as a table of equally long ones.

    `rows` [windows, longest] is which token stands where; shorter windows are filled up with
    token 0. `filled` [windows, 1, 1, longest] is False there; None where nothing is filled up.
    `back` [tokens] leads from the table's places to the tokens.
    """

    rows: Tensor
    filled: Tensor | None
    back: Tensor

    @classmethod
    def of(cls, bounds: Tensor) -> Windows:
        """Those between `bounds` [windows + 1], which begin with 0 and are read back."""
        edges = bounds.cpu()
        starts, ends = edges[:-1], edges[1:]
        places = starts[:, None] + torch.arange(int((ends - starts).max()))
        filled = places < ends[:, None]
        rows = torch.where(filled, places, 0).to(bounds.device)
        back = filled.flatten().nonzero()[:, 0].to(bounds.device)
        whole = bool(filled.all())
        return cls(rows, None if whole else filled[:, None, None].to(bounds.device), back)


class Layout:
    """The windows of the last few bounds: all blocks of a tower get the same tensors.

    Only the first block that meets one waits for the card to read it.
    """

    KEPT = 2
    """Windows, and whole pictures."""

    def __init__(self) -> None:
        self._known: list[tuple[Tensor, Windows]] = []

    def of(self, bounds: Tensor) -> Windows:
        """The windows between `bounds`."""
        for known, windows in self._known:
            if known is bounds:
                return windows
        windows = Windows.of(bounds)
        self._known = [*self._known, (bounds, windows)][-self.KEPT :]
        return windows


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
        windows = self._layout.of(cu_seqlens)
        qkv = self.qkv(hidden_states).unflatten(-1, (3, self._heads, -1))
        q, k, v = qkv.unbind(1)
        q, k = stock.apply_rotary_pos_emb_vision(q, k, *position_embeddings)
        q, k, v = (x[windows.rows].transpose(1, 2) for x in (q, k, v))
        seen = scaled_dot_product_attention(q, k, v, attn_mask=windows.filled, scale=self._scale)
        tokens: Tensor = self.proj(seen.transpose(1, 2).flatten(2).flatten(0, 1)[windows.back])
        return tokens


def gather_windows(tower: Any) -> None:
    """Have the vision `tower` attend to all windows at once."""
    layout = Layout()
    for block in tower.blocks:
        block.attn = Attention(block.attn, layout)
