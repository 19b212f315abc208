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
from vellumd.engine.kernels.feed import Need


class Rope(NamedTuple):
    """Cosines and sines of the rows' positions: [rows, width / 2] in float32."""

    cos: Tensor
    sin: Tensor

    def rows(self, start: int, end: int) -> Rope:
        """Those of some rows."""
        return Rope(self.cos[start:end], self.sin[start:end])


class Ropes(NamedTuple):
    """Those of the text's rows, and of all pictures'."""

    text: Rope
    image: Rope


class Part(NamedTuple):
    """Queries, keys and values of some rows: [1, rows, heads, width] each."""

    query: Tensor
    key: Tensor
    value: Tensor


class Room:
    """Where queries, keys and values of all rows are put.

    Each stream writes its own rows, so nothing is joined by copying.
    """

    def __init__(self, whole: Part) -> None:
        self.whole = whole
        self._parts: dict[tuple[int, int], Part] = {}

    def rows(self, start: int, end: int) -> Part:
        """Those of some rows; cut once, since each step asks for the same."""
        part = self._parts.get((start, end))
        if part is None:
            part = self._parts[start, end] = Part(*(x[:, start:end] for x in self.whole))
        return part


class Mods(NamedTuple):
    """A stream's modulation in one block at one step, before attention and before the MLP.

    Each is [1 or 2, channels]: at the step's time, and at time 0 for references.
    """

    shift: Tensor
    scale: Tensor
    gate: Tensor
    mlp_shift: Tensor
    mlp_scale: Tensor
    mlp_gate: Tensor


class BlockMods(NamedTuple):
    """Those of both streams; the text has no second row."""

    image: Mods
    text: Mods


class Stream(NamedTuple):
    """What one of the two streams has of its own, and what its linears need."""

    query: torch.nn.Module
    key: torch.nn.Module
    value: torch.nn.Module
    query_norm: Tensor
    key_norm: Tensor
    out: torch.nn.Module
    up: torch.nn.Module
    down: torch.nn.Module
    need: Need
    need_out: Need
    need_up: Need
    need_down: Need

    @classmethod
    def of(
        cls, query: Any, key: Any, value: Any, query_norm: Any, key_norm: Any, out: Any, mlp: Any
    ) -> Stream:
        """Of the modules of a stock block."""
        up, down = mlp.net[0].proj, mlp.net[2]
        return cls(
            query, key, value, query_norm.weight, key_norm.weight, out, up, down,
            Need.of(query, key, value), Need.of(out), Need.of(up), Need.of(down),
        )  # fmt: skip


class Streams(NamedTuple):
    """Both of a block, as they are during an edit: LoRAs come and go between edits."""

    image: Stream
    text: Stream

    @classmethod
    def of(cls, stock: Any) -> Streams:
        """Those of a stock block."""
        attn = stock.attn
        return cls(
            Stream.of(
                attn.to_q, attn.to_k, attn.to_v, attn.norm_q, attn.norm_k, attn.to_out[0],
                stock.img_mlp,
            ),
            Stream.of(
                attn.add_q_proj, attn.add_k_proj, attn.add_v_proj, attn.norm_added_q,
                attn.norm_added_k, attn.to_add_out, stock.txt_mlp,
            ),
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

    The stock block's modules are given at each call as `Streams`, so whatever has taken a
    linear's place there is used here.
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
        streams: Streams,
        mods: BlockMods,
        ropes: Ropes,
        room: Room,
        target: int,
        alone: list[Tensor] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """The next `image` [1, rows, channels] and `text` [1, tokens, channels].

        `image` begins with `target` rows of the target. Where it has no others, the
        references' keys and values are those that `room` holds, or those of `alone`:
        reference pictures that look at nothing but themselves. Each becomes its next.
        """
        tokens, rows = text.shape[1], text.shape[1] + image.shape[1]
        one, two = (image, room.rows(tokens, rows)), (text, room.rows(0, tokens))
        with called(self.stock):
            if alone:
                self.look_alone(alone, streams.image, mods.image, ropes.image, room, tokens, target)
            if self.last:
                query = room.rows(0, target).query
                self.project_last(*one, *two, query, streams, mods, ropes)
                heads = self.attention(query, room.whole.key, room.whole.value)
                image = image[:, :target]
                return self.finish_image(image, heads, streams.image, mods.image, target), text
            self.project(*one, *two, target, streams, mods, ropes)
            heads = self.attention(room.rows(0, rows).query, room.whole.key, room.whole.value)
            image = self.finish_image(image, heads[:, tokens:], streams.image, mods.image, target)
            return image, self.finish_text(text, heads[:, :tokens], streams.text, mods.text)

    def project(
        self, image: Tensor, image_part: Part, text: Tensor, text_part: Part, target: int,
        streams: Streams, mods: BlockMods, ropes: Ropes,
    ) -> None:  # fmt: skip
        """Put the queries, keys and values of both streams into their parts of the room."""
        query = image_part.query
        self.fill(streams.image, image, mods.image, target, ropes.image, image_part, query)
        query = text_part.query
        self.fill(streams.text, text, mods.text, text.shape[1], ropes.text, text_part, query)

    def project_last(
        self, image: Tensor, image_part: Part, text: Tensor, text_part: Part, query: Tensor,
        streams: Streams, mods: BlockMods, ropes: Ropes,
    ) -> None:  # fmt: skip
        """As `project`, but of the queries those of the target alone, which `query` is for."""
        target = query.shape[1]
        self.fill(streams.image, image, mods.image, target, ropes.image, image_part, query)
        self.fill(streams.text, text, mods.text, text.shape[1], ropes.text, text_part, None)

    def look_alone(
        self, pictures: list[Tensor], stream: Stream, mods: Mods, rope: Rope, room: Room,
        tokens: int, target: int,
    ) -> None:  # fmt: skip
        """Each of `pictures` past this block; keys and values are put into their rows of `room`."""
        clean = Mods(*(rows[1:] for rows in mods))
        start = target
        for number, picture in enumerate(pictures):
            end = start + picture.shape[1]
            part = room.rows(tokens + start, tokens + end)
            self.project_alone(picture, part, stream, clean, rope.rows(start, end))
            if not self.last:
                heads = self.attention(*part)
                pictures[number] = self.finish_image(
                    picture, heads, stream, clean, picture.shape[1]
                )
            start = end

    def project_alone(
        self, picture: Tensor, part: Part, stream: Stream, mods: Mods, rope: Rope
    ) -> None:
        """Put the queries, keys and values of one picture into its `part` of the room."""
        query = None if self.last else part.query
        self.fill(stream, picture, mods, picture.shape[1], rope, part, query)

    def fill(
        self, stream: Stream, x: Tensor, mods: Mods, split: int, rope: Rope, part: Part,
        query: Tensor | None,
    ) -> None:  # fmt: skip
        """Put keys and values of `x` into `part`, and as many queries as `query` has rows there."""
        fed = self.ops.norm_modulate(x, mods.shift, mods.scale, split, stream.need)
        key = fed.to(stream.key).view_as(part.key)
        self.ops.norm_rotate(key, stream.key_norm, *rope, part.key)
        fed.put(stream.value, part.value)
        if query is not None:
            asked = fed if query.shape[1] == x.shape[1] else fed.first(query.shape[1])
            made = asked.to(stream.query).view_as(query)
            self.ops.norm_rotate(made, stream.query_norm, *rope, query)

    def finish_image(
        self, image: Tensor, heads: Tensor, stream: Stream, mods: Mods, target: int
    ) -> Tensor:
        """What follows attention in the picture stream."""
        return self.finish(stream, image, heads, mods, target)

    def finish_text(self, text: Tensor, heads: Tensor, stream: Stream, mods: Mods) -> Tensor:
        """What follows attention in the text stream."""
        return self.finish(stream, text, heads, mods, text.shape[1])

    def finish(self, stream: Stream, x: Tensor, heads: Tensor, mods: Mods, split: int) -> Tensor:
        """`x` with what attention made of its rows, then with what the MLP makes of it."""
        ops = self.ops
        y = ops.feed(heads.flatten(2), stream.need_out).to(stream.out)
        x, fed = ops.gate_norm_modulate(
            x, y, mods.gate, mods.mlp_shift, mods.mlp_scale, split, stream.need_up
        )
        y = ops.gelu(fed.to(stream.up), stream.need_down).to(stream.down)
        return ops.gate_residual(x, y, mods.mlp_gate, split)
