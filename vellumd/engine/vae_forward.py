"""The VAE's forward on a card: over diffusers' modules, with channels last in memory.

Convolutions are cuDNN's, which wants bfloat16 so; what is between them is one pass each
(`vellumd.engine.kernels.pixels`). Diffusers' methods around it stay, those for tiles too.
"""

# diffusers annotates in part only.
# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl_qwenimage import (
    QwenImageAttentionBlock,
    QwenImageResample,
    QwenImageResidualBlock,
)
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from vellumd import errors
from vellumd.engine.kernels import choice, pixels
from vellumd.engine.trial import Standby

log = logging.getLogger(__name__)

LAST = torch.channels_last
PROBE = 2, 40, 5, 37
"""Batch, channels, height and width of the probe; no tile divides them."""
TOLERANCE_ATTENTION = 0.02
"""Largest relative error of attention in bfloat16, whose weights are rounded as well."""


@dataclass(frozen=True)
class Ops:
    """What the VAE does between its convolutions; see `vellumd.engine.kernels.pixels`."""

    norm: Callable[[Tensor, Tensor | None, Tensor, bool], Tensor] = pixels.norm
    add: Callable[[Tensor, Tensor, Tensor], Tensor] = pixels.add
    double: Callable[[Tensor], Tensor] = pixels.double
    attend: Callable[[Tensor, Tensor, Tensor], Tensor] = pixels.attend


PLAIN = Ops()
FAST = Ops(
    pixels.norm_triton, pixels.add_triton, pixels.double_triton, pixels.attend_products
)  # fmt: skip
TRITON = "norm", "add", "double"
"""Those of `FAST` that are Triton's."""


def hasten(vae: Any, ops: Ops) -> None:
    """Have a flat `vae` (see `vellumd.engine.vae`) run by this forward, with `ops`."""
    vae.to(memory_format=LAST)
    for part in (vae.encoder, vae.decoder):
        part.forward = functools.partial(forward, part, ops)


def choose(
    wanted: str, device: torch.device, dtype: torch.dtype, standby: Standby | None = None
) -> Ops:
    """Of `FAST` what runs here and agrees with its twin, which stands in for the others.

    `wanted` is `auto`, `plain` or `triton`; with the last, `RecipeUnsupported` is raised where
    one of Triton's is refused. With `auto` the twins stand behind the others in `standby`.
    """
    if wanted == "plain":
        return PLAIN
    chosen = FAST
    for name in (field.name for field in fields(Ops)):
        if why := complaint(name, FAST, device, dtype):
            if wanted == "triton" and name in TRITON:
                raise errors.RecipeUnsupported("Triton's kernels do not run on this machine.")
            log.info("the VAE's %s is left out: %s", name, why)
            chosen = replace(chosen, **{name: getattr(PLAIN, name)})
    if wanted == "auto" and standby is not None:
        return choice.with_twins(chosen, PLAIN, standby)
    return chosen


def complaint(name: str, ops: Ops, device: torch.device, dtype: torch.dtype) -> str | None:
    """Why the operation `name` of `ops` cannot be used, found by running it; None if it can.

    An error that has lost the card is raised: nothing runs after it.
    """
    return choice.disagreement(lambda: tried(name, ops, device, dtype))


def tried(
    name: str, ops: Ops, device: torch.device, dtype: torch.dtype
) -> Iterator[tuple[Tensor, Tensor, float]]:
    """What operation `name` makes of random features, what its twin does, and the tolerance."""
    numbers = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        drawn = torch.randn(*shape, generator=numbers).to(device, dtype)
        return drawn.contiguous(memory_format=LAST) if len(shape) == 4 else drawn

    run, twin = getattr(ops, name), getattr(PLAIN, name)
    x, other = random(*PROBE), random(*PROBE)
    bias, weight = random(PROBE[1]), random(PROBE[1])
    if name == "norm":
        for given in ((None, weight, True), (bias, weight, True), (None, weight, False)):
            yield run(x, *given).double(), twin(x, *given).double(), choice.TOLERANCE
    elif name == "add":
        exact = twin(x.clone(), bias, other)
        yield run(x.clone(), bias, other).double(), exact.double(), choice.TOLERANCE
    elif name == "double":
        yield run(x).double(), twin(x).double(), choice.TOLERANCE
    else:
        qkv = torch.cat([x, other, x + other], dim=1).permute(0, 2, 3, 1).flatten(1, 2).chunk(3, -1)
        yield run(*qkv).double(), twin(*qkv).double(), TOLERANCE_ATTENTION


def forward(part: Any, ops: Ops, x: Tensor, *_: object, **__: object) -> Tensor:
    """The VAE's encoder or decoder on `x` [batch, channels, 1, height, width].

    The rest of what diffusers gives is for features of earlier frames. More than one frame is
    a `RuntimeError`.
    """
    y = convolved(part.conv_in, x.squeeze(2).contiguous(memory_format=LAST), part.conv_in.bias)
    for layer in layers(part):
        y = RUNS[type(layer)](layer, y, ops)
    y = ops.norm(y, None, part.norm_out.gamma.flatten(), True)
    return convolved(part.conv_out, y, part.conv_out.bias).unsqueeze(2)


def layers(part: Any) -> Iterator[Any]:
    """What an encoder or a decoder is made of between its first and last convolution."""
    yield from getattr(part, "down_blocks", ())
    first, *others = part.mid_block.resnets
    yield first
    for attention, block in zip(part.mid_block.attentions, others, strict=True):
        yield from (attention, block)
    for up in getattr(part, "up_blocks", ()):
        yield from (*up.resnets, *(up.upsamplers or ()))


def convolved(conv: Any, x: Tensor, bias: Tensor | None = None) -> Tensor:
    """`conv` of `x` [batch, channels, height, width], with no bias unless it is given.

    Torch adds a bias by a pass of its own.
    """
    return F.conv2d(x, conv.weight, bias, conv.stride, conv.padding)


def residual(block: Any, x: Tensor, ops: Ops) -> Tensor:
    """Norm, SiLU and convolution twice, beside a shortcut."""
    short = block.conv_shortcut
    kept = x if isinstance(short, torch.nn.Identity) else convolved(short, x, short.bias)
    y = convolved(block.conv1, ops.norm(x, None, block.norm1.gamma.flatten(), True))
    y = ops.norm(y, block.conv1.bias, block.norm2.gamma.flatten(), True)
    return ops.add(convolved(block.conv2, y), block.conv2.bias, kept)


def attention(block: Any, x: Tensor, ops: Ops) -> Tensor:
    """All pixels look at all, by one head."""
    qkv = block.to_qkv(ops.norm(x, None, block.norm.gamma.flatten(), False))
    mixed = ops.attend(*qkv.permute(0, 2, 3, 1).flatten(1, 2).chunk(3, dim=-1))
    y = mixed.transpose(1, 2).unflatten(2, x.shape[2:])
    return ops.add(convolved(block.proj, y), block.proj.bias, x)


def resampled(block: Any, x: Tensor, ops: Ops) -> Tensor:
    """Twice the size, or half."""
    if block.mode.startswith("up"):
        conv = block.resample[-1]
        return convolved(conv, ops.double(x), conv.bias)
    half: Tensor = block.resample(x)
    return half


RUNS: dict[type, Callable[[Any, Tensor, Ops], Tensor]] = {
    QwenImageResidualBlock: residual,
    QwenImageAttentionBlock: attention,
    QwenImageResample: resampled,
}
