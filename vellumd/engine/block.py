"""One joint block of Qwen-Image, over the weights of diffusers' block.

Text and pictures are two streams with weights of their own that meet in attention. Rows are
in the order text, target, references throughout (Esser et al., arXiv:2403.03206; the order
is diffusers').
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vellumd.engine.attention import Attention
from vellumd.engine.kernels.choice import PLAIN, Ops
from vellumd.engine.kernels.feed import Fed, Need


class Rope(NamedTuple):
    """Cosines and sines of the rows' positions: [rows, width / 2] in float32."""

    cos: Tensor
    sin: Tensor

    def rows(self, start: int, end: int) -> Rope:
        """Those of some rows."""
        return Rope(self.cos[start:end], self.sin[start:end])


class Room(NamedTuple):
    """Where queries, keys and values of all rows are put: [1, rows, heads, width] each.

    Each stream writes its own rows, so nothing is joined by copying.
    """

    query: Tensor
    key: Tensor
    value: Tensor


class Mods(NamedTuple):
    """One block's modulation at one step: shift, scale, gate before attention and MLP each.

    `image` is [6, 1 or 2, channels]: at the step's time, and at time 0 for references;
    `text` [6, 1, channels].
    """

    image: Tensor
    text: Tensor


class Stream(NamedTuple):
    """What one of the two streams has of its own."""

    query: torch.nn.Module
    key: torch.nn.Module
    value: torch.nn.Module
    query_norm: Tensor
    key_norm: Tensor
    out: torch.nn.Module
    up: torch.nn.Module
    down: torch.nn.Module


def image_stream(stock: Any) -> Stream:
    """The picture stream's part of a stock block, as it is now: LoRAs come and go."""
    attn, mlp = stock.attn, stock.img_mlp.net
    return Stream(
        attn.to_q, attn.to_k, attn.to_v, attn.norm_q.weight, attn.norm_k.weight,
        attn.to_out[0], mlp[0].proj, mlp[2],
    )  # fmt: skip


def text_stream(stock: Any) -> Stream:
    """The text stream's part of a stock block."""
    attn, mlp = stock.attn, stock.txt_mlp.net
    return Stream(
        attn.add_q_proj, attn.add_k_proj, attn.add_v_proj, attn.norm_added_q.weight,
        attn.norm_added_k.weight, attn.to_add_out, mlp[0].proj, mlp[2],
    )  # fmt: skip


@contextlib.contextmanager
def called(stock: Any) -> Iterator[None]:
    """What hangs on the stock block's forward happens: its weights may come from the host.

    Hooks that want its arguments are left out, since it gets none.
    """
    for key, hook in list(stock._forward_pre_hooks.items()):
        if key not in stock._forward_pre_hooks_with_kwargs:
            hook(stock, ())
    yield
    for key, hook in list(stock._forward_hooks.items()):
        if key not in stock._forward_hooks_with_kwargs:
            hook(stock, (), None)


class Block(torch.nn.Module):
    """A `QwenImageTransformerBlock` with this module's forward.

    It reads the stock block's modules at each call, so whatever takes a linear's place
    there is used here.
    """

    def __init__(
        self, stock: Any, attention: Attention, ops: Ops = PLAIN, *, last: bool = False
    ) -> None:
        """`last`: nothing is read after it but the target's rows."""
        super().__init__()
        self.stock = stock
        self.attention = attention
        self.ops = ops
        self.last = last

    def fuse(self, **options: Any) -> None:
        """Have torch compile what is around attention; `options` are `torch.compile`'s.

        Blocks have the same code, so they share what was compiled for the first of them.
        """
        for name in ("project", "project_last", "project_alone", "finish_image", "finish_text"):
            setattr(self, name, torch.compile(getattr(self, name), fullgraph=True, **options))

    def forward(
        self,
        image: Tensor,
        text: Tensor,
        mods: Mods,
        rope: Rope,
        room: Room,
        target: int,
        alone: list[Tensor] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """The next `image` [1, rows, channels] and `text` [1, tokens, channels].

        `image` begins with `target` rows of the target. Where it has no others, the
        references' keys and values are those that `room` holds, or those of `alone`:
        reference pictures that look at nothing but themselves. Each becomes its next.
        """
        tokens = text.shape[1]
        with called(self.stock):
            if alone:
                self.look_alone(alone, mods, rope, room, tokens + target)
            if self.last:
                image, query = self.project_last(image, text, mods, rope, room, target)
                heads = self.attention(query, room.key, room.value)
                return self.finish_image(image, heads, mods, target), text
            query = self.project(image, text, mods, rope, room, target)
            heads = self.attention(query, room.key, room.value)
            image = self.finish_image(image, heads[:, tokens:], mods, target)
            return image, self.finish_text(text, heads[:, :tokens], mods)

    def project(
        self, image: Tensor, text: Tensor, mods: Mods, rope: Rope, room: Room, target: int
    ) -> Tensor:
        """Put the keys and values of both streams into `room`; all rows' queries."""
        tokens, rows = text.shape[1], text.shape[1] + image.shape[1]
        one, two = image_stream(self.stock), text_stream(self.stock)
        x = self.modulated(one, image, mods.image, target)
        self.keys_values(one, x, rope.rows(tokens, rows), room, tokens, rows)
        self.queries(one, x, rope.rows(tokens, rows), room.query[:, tokens:rows])
        y = self.modulated(two, text, mods.text, tokens)
        self.keys_values(two, y, rope.rows(0, tokens), room, 0, tokens)
        self.queries(two, y, rope.rows(0, tokens), room.query[:, :tokens])
        return room.query[:, :rows]

    def project_last(
        self, image: Tensor, text: Tensor, mods: Mods, rope: Rope, room: Room, target: int
    ) -> tuple[Tensor, Tensor]:
        """As `project`, but the target's rows of `image` and their queries alone."""
        tokens, rows = text.shape[1], text.shape[1] + image.shape[1]
        one, two = image_stream(self.stock), text_stream(self.stock)
        x = self.modulated(one, image, mods.image, target)
        self.keys_values(one, x, rope.rows(tokens, rows), room, tokens, rows)
        query = room.query[:, :target]
        self.queries(one, x.first(target), rope.rows(tokens, tokens + target), query)
        y = self.modulated(two, text, mods.text, tokens)
        self.keys_values(two, y, rope.rows(0, tokens), room, 0, tokens)
        return image[:, :target], query

    def look_alone(
        self, pictures: list[Tensor], mods: Mods, rope: Rope, room: Room, start: int
    ) -> None:
        """Each of `pictures` past this block; keys and values are put into `room` from `start`."""
        clean = mods._replace(image=mods.image[:, 1:])
        for number, picture in enumerate(pictures):
            end = start + picture.shape[1]
            query = self.project_alone(picture, clean, rope, room, start)
            if not self.last:
                heads = self.attention(query, room.key[:, start:end], room.value[:, start:end])
                pictures[number] = self.finish_image(picture, heads, clean, picture.shape[1])
            start = end

    def project_alone(
        self, picture: Tensor, mods: Mods, rope: Rope, room: Room, start: int
    ) -> Tensor:
        """Put keys and values of one picture into `room` from `start` on; its queries."""
        end = start + picture.shape[1]
        one, turns = image_stream(self.stock), rope.rows(start, end)
        query = room.query[:, start:end]
        x = self.modulated(one, picture, mods.image, picture.shape[1])
        self.keys_values(one, x, turns, room, start, end)
        if not self.last:
            self.queries(one, x, turns, query)
        return query

    def modulated(self, stream: Stream, x: Tensor, mods: Tensor, split: int) -> Fed:
        """What queries, keys and values of `x` are made of."""
        need = Need.of(stream.query, stream.key, stream.value)
        return self.ops.norm_modulate(x, mods[0], mods[1], split, need)

    def queries(self, stream: Stream, x: Fed, rope: Rope, room: Tensor) -> None:
        """Put the queries of `x` into `room` [1, rows, heads, width]."""
        query = x.to(stream.query).view_as(room)
        self.ops.norm_rotate(query, stream.query_norm, *rope, room)

    def keys_values(
        self, stream: Stream, x: Fed, rope: Rope, room: Room, start: int, end: int
    ) -> None:
        """Put keys and values of `x` into the rows `start` to `end` of `room`."""
        key, value = room.key[:, start:end], room.value[:, start:end]
        self.ops.norm_rotate(x.to(stream.key).view_as(key), stream.key_norm, *rope, key)
        value.copy_(x.to(stream.value).view_as(value))

    def finish_image(self, image: Tensor, heads: Tensor, mods: Mods, target: int) -> Tensor:
        """What follows attention in the picture stream."""
        return self.finish(image_stream(self.stock), image, heads, mods.image, target)

    def finish_text(self, text: Tensor, heads: Tensor, mods: Mods) -> Tensor:
        """What follows attention in the text stream."""
        return self.finish(text_stream(self.stock), text, heads, mods.text, text.shape[1])

    def finish(self, stream: Stream, x: Tensor, heads: Tensor, mods: Tensor, split: int) -> Tensor:
        """`x` with what attention made of its rows, then with what the MLP makes of it."""
        ops = self.ops
        y = ops.feed(heads.flatten(2), Need.of(stream.out)).to(stream.out)
        x = ops.gate_residual(x, y, mods[2], split)
        fed = ops.norm_modulate(x, mods[3], mods[4], split, Need.of(stream.up))
        y = ops.gelu(fed.to(stream.up), Need.of(stream.down)).to(stream.down)
        return ops.gate_residual(x, y, mods[5], split)
