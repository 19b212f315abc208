"""Qwen2.5-VL's vision tower: what it sees in pictures, all windows of a block in one call.

Transformers' tower waits for the card in each block and attends window by window: three pictures
are 48 windows in each of 28 blocks, 1,300 calls of a few microseconds' work each. And it cuts the
windows anew each time, though they follow from the pictures' sizes alone.

The forward is our own over transformers' modules: beyond attention the same bits on a CPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from vellumd.engine.block import called
from vellumd.engine.qwen_vl import Rotation, mask_of, planless

Grids = tuple[tuple[int, int], ...]
"""Rows and columns of patches of each picture."""


class Windows(NamedTuple):
    """Where a row of patches is cut into windows, as a table of equally long ones.

    `rows` [windows, longest] is which patch stands where; shorter windows are filled up with
    patch 0, which `mask` [windows, 1, 1, longest] keeps from counting; it is None where nothing
    is filled up. `back` [patches] leads from the table's places to the patches. `rotation` is
    that of the table's places.
    """

    rows: Tensor
    mask: Tensor | None
    back: Tensor
    rotation: Rotation

    @classmethod
    def of(cls, lengths: Sequence[int], rotation: Rotation, dtype: torch.dtype) -> Windows:
        """Those of `lengths`, one after the other; `rotation` is that of the patches."""
        device = rotation.cos.device
        ends = torch.tensor(lengths).cumsum(0)
        places = (ends - torch.tensor(lengths))[:, None] + torch.arange(max(lengths))
        filled = places < ends[:, None]
        rows = torch.where(filled, places, 0).to(device)
        back = filled.flatten().nonzero()[:, 0].to(device)
        whole = bool(filled.all())
        mask = None if whole else mask_of(filled[:, None, None].to(device), dtype)
        cut = Rotation(rotation.cos[rows], rotation.sin[rows])
        return cls(rows, mask, back, cut)

    def cut(self, patches: Tensor) -> Tensor:
        """`patches` [patches, ...] as [windows, longest, ...]."""
        if self.mask is None:
            return patches.view(*self.rows.shape, *patches.shape[1:])
        return patches[self.rows]

    def joined(self, table: Tensor) -> Tensor:
        """The patches of what was cut."""
        patches = table.flatten(0, 1)
        return patches if self.mask is None else patches[self.back]


class Layout(NamedTuple):
    """Where the patches of some pictures stand in the tower.

    They come as tokens of several, by pictures; `order` [tokens] leads to the tower's order, by
    windows, and `back` from there. Blocks attend to `windows`, and some to whole `pictures`.
    """

    order: Tensor
    back: Tensor
    windows: Windows
    pictures: Windows

    @classmethod
    def of(cls, tower: Any, grids: Grids, dtype: torch.dtype, device: torch.device) -> Layout:
        """That of pictures with so many patches."""
        merged = tower.spatial_merge_size
        side = tower.window_size // merged // tower.patch_size
        cut, places, tokens = [], [], 0
        for rows, columns in ((rows // merged, columns // merged) for rows, columns in grids):
            numbers = tokens + torch.arange(rows * columns).view(rows, columns)
            cut += [
                numbers[top : top + side, left : left + side].flatten()
                for top in range(0, rows, side)
                for left in range(0, columns, side)
            ]
            places.append(_pairs(rows, columns))
            tokens += rows * columns
        order = torch.cat(cut)
        patches = torch.cat(places)[order, None] * merged + _pairs(merged, merged)
        rotation = _rotation(tower, patches.flatten(0, 1).to(device))
        lengths = [len(part) * merged**2 for part in cut]
        whole = [rows * columns for rows, columns in grids]
        return cls(
            order.to(device),
            order.argsort().to(device),
            Windows.of(lengths, rotation, dtype),
            Windows.of(whole, rotation, dtype),
        )


def _pairs(rows: int, columns: int) -> Tensor:
    """The row and the column of each place [rows * columns, 2]."""
    return torch.cartesian_prod(torch.arange(rows), torch.arange(columns))


def _rotation(tower: Any, places: Tensor) -> Rotation:
    """That of `places` [patches, 2]: a half of each head's half turns by row, one by column."""
    speeds = tower.rotary_pos_emb.inv_freq.to(places.device, torch.float)
    angles = (places[..., None].float() * speeds).flatten(1).repeat(1, 2)
    return Rotation.of(angles.cos(), angles.sin())


class Block(NamedTuple):
    """A stock block's modules, as they are at this moment, and how it cuts its heads."""

    norm: Any
    qkv: Any
    out: Any
    mlp_norm: Any
    mlp: Any
    heads: int
    scale: float

    @classmethod
    def of(cls, stock: Any) -> Block:
        """Of a `Qwen2_5_VLVisionBlock`."""
        attn = stock.attn
        return cls(
            stock.norm1, attn.qkv, attn.proj, stock.norm2, stock.mlp, attn.num_heads, attn.scaling
        )

    def see(self, hidden: Tensor, windows: Windows) -> Tensor:
        """`hidden` [patches, channels] after the block; each sees those of its window."""
        qkv = windows.cut(self.qkv(self.norm(hidden)).unflatten(-1, (3 * self.heads, -1)))
        # Queries and keys turn together, in float32.
        turned = windows.rotation.turn(qkv[:, :, : 2 * self.heads])
        query, key = turned.transpose(1, 2).chunk(2, dim=1)
        value = qkv[:, :, 2 * self.heads :].transpose(1, 2)
        seen = scaled_dot_product_attention(
            query, key, value, attn_mask=windows.mask, scale=self.scale
        )
        hidden = hidden + self.out(windows.joined(seen.transpose(1, 2).flatten(2)))
        after: Tensor = hidden + self.mlp(self.mlp_norm(hidden))
        return after


class Tower:
    """A Qwen2.5-VL vision tower, and the layouts of the sizes that it saw last."""

    KEPT = 4

    def __init__(self, stock: Any) -> None:
        """`stock` is transformers' tower."""
        self._stock = stock
        self._layout = lru_cache(self.KEPT)(Layout.of)

    @planless
    def see(self, patches: Tensor, grids: Grids) -> Tensor:
        """What is seen in `patches` [patches, numbers] of pictures: [tokens, channels]."""
        stock = self._stock
        hidden = stock.patch_embed(patches)
        layout = self._layout(stock, grids, hidden.dtype, hidden.device)
        hidden = hidden.view(len(layout.order), -1)[layout.order].view(hidden.shape)
        for number, block in enumerate(stock.blocks):
            whole = number in stock.fullatt_block_indexes
            with called(block):
                hidden = Block.of(block).see(hidden, layout.pictures if whole else layout.windows)
        tokens: Tensor = stock.merger(hidden)[layout.back]
        return tokens
