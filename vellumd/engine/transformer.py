"""Qwen-Image-Edit's transformer: our forward over diffusers' weights, and diffusers' own.

What does not change during an edit is computed once: the references' embedding, each
prompt's, positions, and the modulation of all steps (docs/performance.md).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from vellumd.engine.attention import Attention
from vellumd.engine.block import Block, Rope, Ropes, Streams
from vellumd.engine.kernels.choice import PLAIN, Ops
from vellumd.engine.kernels.feed import Need
from vellumd.engine.modulation import Modulation
from vellumd.engine.plan import Plan
from vellumd.engine.rooms import Rooms, rooms
from vellumd.memory_plan import Kept


@dataclass(frozen=True)
class Conditioning:
    """What guides an edit; the same for all its n pictures.

    `prompt` and `negative` are embeddings [1, tokens, channels], `references` the packed
    latents of all pictures [1, tokens, 64]. `shapes` gives (1, rows, columns) in tokens
    of the target and each reference. Guidance runs where there is a `negative`.
    """

    prompt: Tensor
    negative: Tensor | None
    references: Tensor
    shapes: list[tuple[int, int, int]]

    @property
    def prompts(self) -> list[Tensor]:
        """The prompt, and the negative one if there is guidance."""
        return [self.prompt] if self.negative is None else [self.prompt, self.negative]


Velocity = Callable[[int, int, Tensor], Tensor]
"""Step (from 0), number of the prompt, target [1, tokens, 64] to its velocity, as large."""


class Forward(Protocol):
    """A forward of the transformer. `reuses` tells whether it keeps to a plan's fresh steps.

    `causal`: reference pictures look at nothing but themselves, so that using their keys and
    values again is exact.
    """

    reuses: bool
    causal: bool

    @property
    def blocks(self) -> Sequence[torch.nn.Module]:
        """The modules that a forward calls one after another."""
        ...

    def prepare(self, conditioning: Conditioning, times: Tensor, plan: Plan) -> Velocity:
        """The forward of one edit, whose steps have `times` [steps] from 1000 to 0."""
        ...


class Stock:
    """Diffusers' own forward: the reference for parity. All its steps are fresh."""

    reuses = False
    causal = False

    def __init__(self, stock: Any) -> None:
        self._stock = stock
        self.blocks = list(stock.transformer_blocks)

    def prepare(self, conditioning: Conditioning, times: Tensor, plan: Plan) -> Velocity:
        """See `Forward.prepare`."""

        def velocity(step: int, prompt: int, tokens: Tensor) -> Tensor:
            output: Tensor = self._stock(
                hidden_states=torch.cat([tokens, conditioning.references], dim=1),
                timestep=times[step].expand(1).to(tokens.dtype) / 1000,
                encoder_hidden_states=conditioning.prompts[prompt],
                img_shapes=[conditioning.shapes],
                return_dict=False,
            )[0]
            return output[:, : tokens.shape[1]]

        return velocity


class Own:
    """Our forward over the weights of diffusers' `QwenImageTransformer2DModel`.

    Modules of `stock` are looked up for each edit, so quantised linears and LoRA branches
    work by taking a linear's place there.
    """

    reuses = True

    def __init__(
        self, stock: Any, attention: Attention, ops: Ops = PLAIN, *, causal: bool = False
    ) -> None:
        """`causal`: each reference picture looks at nothing but itself, as it was trained."""
        self._stock = stock
        self.causal = causal
        stocks = list(stock.transformer_blocks)
        self.blocks = [
            Block(block, attention, ops, last=block is stocks[-1]).eval() for block in stocks
        ]

    def fused(self, **options: Any) -> Own:
        """Itself, with what is around attention compiled by torch with `options`."""
        for block in self.blocks:
            block.fuse(**options)
        return self

    def prepare(self, conditioning: Conditioning, times: Tensor, plan: Plan) -> Velocity:
        """See `Forward.prepare`."""
        return Prepared(self._stock, self.blocks, conditioning, times, plan, causal=self.causal)


class Prepared:
    """One edit's forward. Everything that lasts from step to step is in here."""

    def __init__(
        self,
        stock: Any,
        blocks: Sequence[Any],
        conditioning: Conditioning,
        times: Tensor,
        plan: Plan,
        *,
        causal: bool = False,
    ) -> None:
        references = conditioning.references
        self._causal = causal
        self._sizes = [math.prod(shape) for shape in conditioning.shapes[1:]]
        self._stock = stock
        self._blocks = [(block, Streams.of(block.stock)) for block in blocks]
        self._plan = plan
        self._references = stock.img_in(references)
        self._modulation = Modulation(stock, times.to(references.dtype) / 1000)
        kept = plan.kept if plan.reuses else None
        self._prompts = [
            Prompt.of(stock, embedding, conditioning.shapes, kept)
            for embedding in conditioning.prompts
        ]

    def __call__(self, step: int, prompt: int, tokens: Tensor) -> Tensor:
        """See `Velocity`."""
        target, mods, given = tokens.shape[1], self._modulation.step(step), self._prompts[prompt]
        image, text = self._stock.img_in(tokens), given.text
        fresh = step in self._plan.fresh or not given.filled
        alone = None
        if fresh and self._causal:
            alone = list(self._references.split(self._sizes, dim=1))
        elif fresh:
            image = torch.cat([image, self._references], dim=1)
        for number, (block, streams) in enumerate(self._blocks):
            room = given.rooms.enter(number, fresh=fresh)
            image, text = block(
                image, text, streams, mods.blocks[number], given.ropes, room, target, alone
            )
            given.rooms.leave(number, fresh=fresh)
        given.filled = True
        ends = Need.of(self._stock.proj_out)
        fed = PLAIN.norm_modulate(image, mods.shift, mods.scale, target, ends)
        return fed.to(self._stock.proj_out)


@dataclass
class Prompt:
    """What one prompt's forwards share.

    `text` is its embedding [1, tokens, channels], `ropes` the positions of all rows; `filled`
    tells whether a step has left the references' keys and values in `rooms`.
    """

    text: Tensor
    ropes: Ropes
    rooms: Rooms
    filled: bool = False

    @classmethod
    def of(
        cls,
        stock: Any,
        embedding: Tensor,
        shapes: list[tuple[int, int, int]],
        kept: Kept | None = None,
    ) -> Prompt:
        """Of the encoder's `embedding`; `kept` as of `rooms`."""
        text = stock.txt_in(stock.txt_norm(embedding))
        pictures, words = stock.pos_embed(
            [shapes], max_txt_seq_len=text.shape[1], device=text.device
        )
        # Diffusers' tables are complex; Inductor compiles none, and fused kernels read pairs.
        ropes = Ropes(
            *(Rope(turns.real.contiguous(), turns.imag.contiguous()) for turns in (words, pictures))
        )
        attn = stock.transformer_blocks[0].attn
        shape = (1, len(words) + len(pictures), attn.heads, attn.inner_dim // attn.heads)
        blocks, first = len(stock.transformer_blocks), text.shape[1] + math.prod(shapes[0])
        return cls(
            text,
            ropes,
            rooms(text.new_empty(shape), blocks, kept, first),
        )
