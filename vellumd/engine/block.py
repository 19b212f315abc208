"""One joint block of Qwen-Image, over the weights of diffusers' block.

Text and pictures are two streams with weights of their own that meet in attention; rows lie
where `vellumd.engine.rows` says (Esser et al., arXiv:2403.03206). Prompts pass a block together, so
weights that are streamed come once for both.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vellumd.engine.attention import Attention
from vellumd.engine.kernels.choice import PLAIN, Ops
from vellumd.engine.kernels.feed import Need
from vellumd.engine.residual import Residual
from vellumd.engine.rows import Part, Prompts, Room

GRAPHS = 96
"""Most that torch compiles of one function; beyond them a forward fails. The first block, the last
or another, references anew or used again, one prompt or both, the first size or any: 24 for each
way that LoRAs lie beside the weights. Its own limit is 8, against loops that never end."""


class Rope(NamedTuple):
    """Cosines and sines of the rows' positions: [rows, width / 2] in float32."""

    cos: Tensor
    sin: Tensor

    def rows(self, start: int, end: int) -> Rope:
        """Those of some rows."""
        return Rope(self.cos[start:end], self.sin[start:end])


class Ropes(NamedTuple):
    """Those of each prompt's text, and of a prompt's pictures, which are the same for all."""

    texts: tuple[Rope, ...]
    image: Rope


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
        self,
        stock: Any,
        attention: Attention,
        ops: Ops = PLAIN,
        again: Attention | None = None,
        *,
        last: bool = False,
    ) -> None:
        """`last`: nothing is read after it but the target's rows. `again` as of `Own`."""
        super().__init__()
        self.stock = stock
        self.attention = attention
        self.again = again or attention
        self.ops = ops
        self.last = last

    def fuse(self, **options: Any) -> None:
        """Have torch compile what is around attention; `options` are `torch.compile`'s.

        Blocks have the same code, so they share what was compiled for the first of them.
        """
        torch._dynamo.config.recompile_limit = GRAPHS
        for name in ("project", "project_alone", "mix", "finish"):
            setattr(self, name, torch.compile(getattr(self, name), fullgraph=True, **options))

    def forward(
        self,
        image: Residual,
        text: Residual,
        streams: Streams,
        mods: BlockMods,
        ropes: Ropes,
        room: Room,
        prompts: Prompts,
        alone: Sequence[Residual] = (),
    ) -> None:
        """Make `image` of [prompts, rows, channels] and `text` of [1, tokens, channels] the next.

        `prompts` are those of `room`, `text` has the tokens of one after the other, and so has
        `ropes`. `image` begins with the target, up to its split. Where it has no others, the
        references' keys and values are those that `room` holds, or those of `alone`:
        reference pictures that look at nothing but themselves. They become the next ones too.
        """
        seats = room.seats(prompts, image.rows.shape[1], image.split, self.last)
        with called(self.stock):
            if alone:
                self.look_alone(
                    alone, streams.image, mods.image, ropes.image, room, prompts, image.split
                )
            self.project(image, text, seats.pictures, seats.texts, streams, mods, ropes)
            whole = image.rows.shape[1] == room.rows.pictures
            attend = self.attention if whole else self.again
            answers = [attend(*asking) for asking in seats.prompts]
            mixed = self.mix(seats.of_pictures(answers), streams.image)
            mixed_text = None if self.last else self.mix(seats.of_texts(answers), streams.text)
            del answers  # before the MLP needs room
            image.rows = image.rows[:, : seats.asked.pictures]
            self.finish(image, mixed.view_as(image.rows), streams.image, mods.image)
            if mixed_text is not None:
                self.finish(text, mixed_text, streams.text, mods.text)

    def project(
        self, image: Residual, text: Residual, pictures: Part, texts: tuple[Part, ...],
        streams: Streams, mods: BlockMods, ropes: Ropes,
    ) -> None:  # fmt: skip
        """Put the queries, keys and values of both streams where they belong."""
        self.fill(streams.image, image, mods.image, [pictures], [ropes.image])
        self.fill(streams.text, text, mods.text, texts, ropes.texts)

    def look_alone(
        self, pictures: Sequence[Residual], stream: Stream, mods: Mods, rope: Rope, room: Room,
        prompts: Prompts, target: int,
    ) -> None:  # fmt: skip
        """Each of `pictures` past this block; keys and values are put into their rows of `room`.

        They are the same for all prompts, and computed for one of them.
        """
        clean = Mods(*(rows[1:] for rows in mods))
        start = target
        for picture in pictures:
            end = start + picture.rows.shape[1]
            part = room.alone(prompts[0], start, end, asking=not self.last)
            self.project_alone(picture, part, stream, clean, rope.rows(start, end))
            for rows in room.pictures(prompts, start, end):
                rows[1:] = rows[:1]
            if part.query is not None:
                answer = self.attention(part.query, part.key, part.value)
                self.finish(picture, self.mix([answer], stream), stream, clean)
            start = end

    def project_alone(
        self, picture: Residual, part: Part, stream: Stream, mods: Mods, rope: Rope
    ) -> None:
        """Put the queries, keys and values of one picture into its `part` of the room."""
        self.fill(stream, picture, mods, [part], [rope])

    def fill(
        self, stream: Stream, x: Residual, mods: Mods, parts: Sequence[Part], ropes: Sequence[Rope]
    ) -> None:
        """Put keys and values of the rows of `x` into `parts`, and as many queries as they have."""
        fed = x.normed(self.ops, mods.shift, mods.scale, stream.need)
        self.turn(fed.to(stream.key), stream.key_norm, ropes, [part.key for part in parts])
        fed.put(stream.value, [part.value for part in parts])
        queries = [part.query for part in parts if part.query is not None]
        if queries:
            asked = fed.first(sum(query.shape[1] for query in queries))
            self.turn(asked.to(stream.query), stream.query_norm, ropes, queries)

    def turn(
        self, made: Tensor, weight: Tensor, ropes: Sequence[Rope], outs: Sequence[Tensor]
    ) -> None:
        """Put the rows of `made` into `outs`, one after the other, normed and rotated."""
        pieces = torch.split(made, [out.shape[1] for out in outs], dim=1)
        for rows, rope, out in zip(pieces, ropes, outs, strict=True):
            self.ops.norm_rotate(rows.view_as(out), weight, *rope, out)

    def mix(self, answers: list[Tensor], stream: Stream) -> Tensor:
        """Attention's `answers` to the rows of a stream, one after the other, past its linear."""
        heads = [answer.flatten(2) for answer in answers]
        return self.ops.feed(heads, stream.need_out).to(stream.out)

    def finish(self, x: Residual, mixed: Tensor, stream: Stream, mods: Mods) -> None:
        """Add to `x` what attention `mixed`; what the MLP makes of that takes its place, pending.

        Inside the MLP rows are four times as wide: those of one prompt are at a time.
        """
        ops, up, down = self.ops, stream.up, stream.down
        for rows, y in zip(torch.split(x.rows, 1), torch.split(mixed, 1), strict=True):
            gated = rows, y, mods.gate, mods.mlp_shift, mods.mlp_scale, x.split, stream.need_up
            # Without names, so that each is let go as soon as the next one is there.
            ops.gelu(ops.gate_norm_modulate(*gated).to(up), stream.need_down).to(down, y)
        x.pending = mixed, mods.mlp_gate
