"""How far a transformer is from itself once its weights are rounded: per linear, block, whole.

Shared by the tests, which ask it of the demo, and by `tests.bench.precision`, which asks it
of a model of the real size.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tests.engine import gate
from vellumd.engine import linears, precision

Rounding = Callable[[torch.nn.Linear], torch.nn.Module]


def cast(linear: torch.nn.Linear) -> torch.nn.Module:
    """The predecessor's: a bare cast, so a weight has what e4m3 has at its size."""
    plain = copy.deepcopy(linear)
    plain.weight.data = gate.plain(plain.weight.data)
    return plain


def rounded(kind: type[linears.Fp8Linear]) -> Rounding:
    """The engine's linear of that kind."""

    def make(linear: torch.nn.Linear) -> torch.nn.Module:
        small = kind(
            linear.in_features, linear.out_features, bias=linear.bias.dtype,
            device=linear.weight.device,
        )  # fmt: skip
        precision.fill(small, linear.weight.data, linear.bias.data)
        return small

    return make


@dataclass(frozen=True)
class Variant:
    """A rounding of all linears of a block, or of those outside the keep-list."""

    make: Rounding
    keep: bool = False


VARIANTS = {
    "plain cast": Variant(cast),
    "plain cast, keep-list": Variant(cast, keep=True),
    "fp8-weights, all": Variant(rounded(linears.WeightOnly)),
    "fp8-weights": Variant(rounded(linears.WeightOnly), keep=True),
    "fp8-rows, all": Variant(rounded(linears.RowGemm)),
    "fp8-rows": Variant(rounded(linears.RowGemm), keep=True),
    "fp8-tensor": Variant(rounded(linears.TensorGemm), keep=True),
}
"""Without the keep-list modulation is rounded too, as the predecessor does."""


def distance(found: Tensor, exact: Tensor) -> float:
    """The relative error in the 2-norm."""
    found, exact = found.detach().double(), exact.detach().double()
    return float((found - exact).norm() / exact.norm())


def apply(block: torch.nn.Module, variant: Variant) -> None:
    """Round the linears of `block`."""
    for name, module in list(block.named_modules()):
        kept = variant.keep and name.endswith(precision.KEPT)
        if isinstance(module, torch.nn.Linear) and not kept:
            precision.put(block, name, variant.make(module))


def by_block(
    transformer: Any, feed: dict[str, Any], variants: dict[str, Variant], *, small: bool
) -> dict[str, list[float]]:
    """Each variant's error in what each block adds to the picture's tokens.

    Every block is fed what the untouched blocks before it gave. `small`: its weights are
    rescaled by 1/16 before they are rounded.
    """
    found: dict[str, list[float]] = {name: [] for name in variants}

    def compare(block: torch.nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        before = kwargs["hidden_states"]
        exact = output[1] - before
        for name, variant in variants.items():
            # The bound forward, hooks left out: this is called by one.
            other = copy.deepcopy(block)
            other._forward_hooks.clear()
            other._forward_hooks_with_kwargs.clear()
            if small:
                gate.rescaled([other])
            apply(other, variant)
            found[name].append(distance(other(*args, **kwargs)[1] - before, exact))

    handles = [
        block.register_forward_hook(compare, with_kwargs=True)
        for block in transformer.transformer_blocks
    ]
    try:
        with torch.inference_mode():
            transformer(**feed, return_dict=False)
    finally:
        for handle in handles:
            handle.remove()
    return found


def whole(
    transformer: Any, feed: dict[str, Any], variants: dict[str, Variant], *, small: bool
) -> dict[str, float]:
    """Each variant's error at the end of a forward through all blocks."""
    target = feed["img_shapes"][0][0]
    count = target[0] * target[1] * target[2]
    with torch.inference_mode():
        exact = transformer(**feed, return_dict=False)[0][:, :count]
        return {
            name: distance(_forward(transformer, feed, variant, small)[:, :count], exact)
            for name, variant in variants.items()
        }


def _forward(transformer: Any, feed: dict[str, Any], variant: Variant, small: bool) -> Tensor:
    with replaced(transformer, variant, small=small):
        output: Tensor = transformer(**feed, return_dict=False)[0]
    return output


@contextlib.contextmanager
def replaced(transformer: Any, variant: Variant, *, small: bool) -> Iterator[None]:
    """Rounded blocks in the place of the transformer's own, one copy at a time."""
    blocks = transformer.transformer_blocks
    own = list(blocks)
    try:
        for number, block in enumerate(own):
            other = copy.deepcopy(block)
            if small:
                gate.rescaled([other])
            apply(other, variant)
            blocks[number] = other
        yield
    finally:
        for number, block in enumerate(own):
            blocks[number] = block
