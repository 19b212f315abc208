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
from vellumd.engine.residual import Residual
from vellumd.engine.rooms import Rooms, rooms
from vellumd.engine.rows import Prompts, Rows
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


Velocity = Callable[[int, Prompts, Tensor], Tensor]
"""Step (from 0), prompts, target [1, tokens, 64] to the velocity by each of them:
[prompts, tokens, 64]."""


class Forward(Protocol):
    """A forward of the transformer. `reuses` tells whether it keeps to a plan's fresh steps.

    `together`: both prompts pass each block at once. `causal`: reference pictures look at
    nothing but themselves, so that using their keys and values again is exact.
    """

    reuses: bool
    together: bool
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
    together = False
    causal = False

    def __init__(self, stock: Any) -> None:
        self._stock = stock
        self.blocks = list(stock.transformer_blocks)

    def prepare(self, conditioning: Conditioning, times: Tensor, plan: Plan) -> Velocity:
        """See `Forward.prepare`."""

        def one(step: int, prompt: int, tokens: Tensor) -> Tensor:
            output: Tensor = self._stock(
                hidden_states=torch.cat([tokens, conditioning.references], dim=1),
                timestep=times[step].expand(1).to(tokens.dtype) / 1000,
                encoder_hidden_states=conditioning.prompts[prompt],
                img_shapes=[conditioning.shapes],
                return_dict=False,
            )[0]
            return output[:, : tokens.shape[1]]

        def velocity(step: int, prompts: Prompts, tokens: Tensor) -> Tensor:
            return torch.cat([one(step, prompt, tokens) for prompt in prompts])

        return velocity


class Own:
    """Our forward over the weights of diffusers' `QwenImageTransformer2DModel`.

    Modules of `stock` are looked up for each edit, so quantised linears and LoRA branches
    work by taking a linear's place there.
    """

    reuses = True
    together = True

    def __init__(
        self,
        stock: Any,
        attention: Attention,
        ops: Ops = PLAIN,
        again: Attention | None = None,
        *,
        causal: bool = False,
    ) -> None:
        """`again` attends in steps that use references' keys and values again; `attention` if None.

        `causal`: each reference picture looks at nothing but itself, as it was trained.
        """
        self._stock = stock
        self.causal = causal
        stocks = list(stock.transformer_blocks)
        self.blocks = [
            Block(block, attention, ops, again, last=block is stocks[-1]).eval() for block in stocks
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
        self._inputs = Inputs.of(stock, conditioning, kept)
        # Prompts whose references' keys and values are in the rooms, of an earlier step.
        self._filled: set[int] = set()

    def __call__(self, step: int, prompts: Prompts, tokens: Tensor) -> Tensor:
        """See `Velocity`."""
        given, target = self._inputs, tokens.shape[1]
        fresh = step in self._plan.fresh or not self._filled.issuperset(prompts)
        rows, alone = self._stock.img_in(tokens), []
        if fresh and self._causal:
            pictures = self._references.split(self._sizes, dim=1)
            alone = [Residual(picture.clone(), picture.shape[1]) for picture in pictures]
        elif fresh:
            rows = torch.cat([rows, self._references], dim=1)
        rows = rows.repeat(len(prompts), 1, 1)
        image = Residual(rows, target)
        text, ropes = given.text_of(prompts), given.ropes_of(prompts)
        mods = self._modulation.step(step)
        for number, (block, streams) in enumerate(self._blocks):
            room = given.rooms.enter(number, prompts, fresh=fresh)
            block(image, text, streams, mods.blocks[number], ropes, room, prompts, alone)
            given.rooms.leave(number, prompts, fresh=fresh)
        self._filled.update(prompts)
        fed = image.normed(PLAIN, mods.shift, mods.scale, Need.of(self._stock.proj_out))
        return fed.to(self._stock.proj_out)


@dataclass(frozen=True)
class Inputs:
    """What the forwards of an edit share.

    `texts` are the prompts' embeddings [1, tokens, channels], `ropes` the positions of all rows.
    """

    texts: list[Tensor]
    ropes: Ropes
    rooms: Rooms

    @classmethod
    def of(cls, stock: Any, given: Conditioning, kept: Kept | None = None) -> Inputs:
        """Of `given`; `kept` as of `rooms`."""
        texts = [stock.txt_in(stock.txt_norm(embedding)) for embedding in given.prompts]
        tokens = tuple(text.shape[1] for text in texts)
        target, *references = (math.prod(shape) for shape in given.shapes)
        rows = Rows(tokens, target + sum(references))
        attn = stock.transformer_blocks[0].attn
        query = texts[0].new_empty(1, rows.total, attn.heads, attn.inner_dim // attn.heads)
        blocks = len(stock.transformer_blocks)
        ropes = _ropes(stock, given.shapes, tokens, query.device)
        return cls(texts, ropes, rooms(rows, query, blocks, kept, target))

    def text_of(self, prompts: Prompts) -> Residual:
        """A copy of the embeddings of `prompts`, one after the other; blocks change it."""
        rows = torch.cat([self.texts[prompt] for prompt in prompts], dim=1)
        return Residual(rows, rows.shape[1])

    def ropes_of(self, prompts: Prompts) -> Ropes:
        """The positions of their rows."""
        return Ropes(tuple(self.ropes.texts[prompt] for prompt in prompts), self.ropes.image)


def _ropes(
    stock: Any, shapes: list[tuple[int, int, int]], tokens: tuple[int, ...], device: torch.device
) -> Ropes:
    """Those of pictures of `shapes`, and of texts of so many `tokens` after them."""
    found = stock.pos_embed([shapes], max_txt_seq_len=max(tokens), device=device)
    # Diffusers' tables are complex; Inductor compiles none, and fused kernels read pairs.
    image, text = (Rope(turns.real.contiguous(), turns.imag.contiguous()) for turns in found)
    return Ropes(tuple(text.rows(0, count) for count in tokens), image)
