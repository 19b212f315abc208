"""Which operations Triton does here: each kernel is run once and compared with its twin."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor

from vellumd import errors
from vellumd.engine.kernels import feed, gelu, modulate, rotate
from vellumd.engine.kernels.feed import Fed, Need
from vellumd.engine.trial import Standby, refusal

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

log = logging.getLogger(__name__)

TOLERANCE = 0.01
"""Largest relative error: bfloat16, rounded four times in the twin, gives 0.004."""
TOLERANCE_SMALL = 0.04
"""The same of e4m3, where a number on the border between two falls to either side."""
PROMPTS, ROWS, SPLIT, HEADS, WIDTH = 2, 37, 11, 3, 40
"""Of the probe; but for the prompts none is a power of two."""
NEEDS = Need(True, False), Need(True, True), Need(False, True)
"""All forms that linears take their input in."""
FORMED = "norm_modulate", "gate_norm_modulate", "gelu"
"""Operations that give these forms and have work of their own."""


@dataclass(frozen=True)
class Ops:
    """What a block does between its matrix products."""

    norm_modulate: Callable[[Tensor, Tensor, Tensor, int, Need], Fed] = modulate.norm_modulate
    gate_norm_modulate: Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, int, Need], Fed] = (
        modulate.gate_norm_modulate
    )
    norm_rotate: Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], None] = rotate.norm_rotate
    gelu: Callable[[Tensor, Need], Fed] = gelu.gelu
    feed: Callable[[Sequence[Tensor], Need], Fed] = feed.joined


PLAIN = Ops()
TRITON = Ops(
    modulate.norm_modulate_triton, modulate.gate_norm_modulate_triton, rotate.norm_rotate_triton,
    gelu.gelu_triton, feed.joined_triton,
)  # fmt: skip


@dataclass(frozen=True)
class Choice:
    """The operations that run, and why some are not Triton's."""

    ops: Ops
    refused: dict[str, str]


def choose(
    wanted: str, device: torch.device, dtype: torch.dtype, standby: Standby | None = None
) -> Choice:
    """Triton's operations where they run and agree; the plain ones where not, or on a CPU.

    `wanted` is `auto`, `plain` or `triton`; with the last, `RecipeUnsupported` is raised where
    one is refused. With `auto` the plain ones stand behind Triton's in `standby`.
    """
    if wanted == "plain" or (wanted == "auto" and device.type == "cpu"):
        return Choice(PLAIN, {})
    found = those_that_run(TRITON, device, dtype)
    if wanted == "triton" and any(field.name in found.refused for field in fields(Ops)):
        raise errors.RecipeUnsupported("Triton's kernels do not run on this machine.")
    if wanted == "auto" and standby is not None:
        return replace(found, ops=with_twins(found.ops, PLAIN, standby))
    return found


Operations = TypeVar("Operations", bound="DataclassInstance")


def with_twins(ops: Operations, twins: Operations, standby: Standby) -> Operations:
    """`ops`, each with its twin behind it unless it is that."""
    names = (field.name for field in fields(ops))
    pairs = ((name, getattr(ops, name), getattr(twins, name)) for name in names)
    guarded = {name: standby.behind(name, run, twin) for name, run, twin in pairs if run != twin}
    return replace(ops, **guarded)


def those_that_run(ops: Ops, device: torch.device, dtype: torch.dtype) -> Choice:
    """`ops`, with the plain twin of each operation that does not run or agree.

    One that fails at rounding to e4m3 alone is replaced there alone: cards before SM89 have no
    such numbers.
    """
    refused: dict[str, str] = {}
    twins: dict[str, Callable[..., Any]] = {}
    for field in fields(Ops):
        name, twin = field.name, getattr(PLAIN, field.name)
        if why := complaint(name, ops, device, dtype):
            if name in FORMED and complaint(name, ops, device, dtype, NEEDS[:1]) is None:
                name, twin = f"{name} to e4m3", by_form(getattr(ops, name), twin)
            log.info("Triton's %s is left out: %s", name, why)
            refused[name], twins[field.name] = why, twin
    return Choice(replace(ops, **twins), refused)


def by_form(whole: Callable[..., Any], small: Callable[..., Any]) -> Callable[..., Any]:
    """An operation that rounds to e4m3 as `small` does, and does all else as `whole`."""

    def run(*given: Any) -> Any:
        return (small if given[-1].small else whole)(*given)

    return run


def complaint(
    name: str, ops: Ops, device: torch.device, dtype: torch.dtype, needs: Sequence[Need] = NEEDS
) -> str | None:
    """Why the operation `name` of `ops` cannot be used, found by running it; None if it can.

    An error that has lost the card is raised: nothing runs after it.
    """
    once = partial(disagreement, lambda: tried(name, ops, device, dtype, needs))
    # Twice, since a kernel is launched another way from the second time on (`Kernel`).
    return once() or once()


def disagreement(run: Callable[[], Iterator[tuple[Tensor, Tensor, float]]]) -> str | None:
    """What is wrong with what `run` gives: results, exact ones, and the tolerated errors.

    An error that has lost the card is raised: nothing runs after it.
    """

    def judged() -> str | None:
        for number, (made, exact, tolerance) in enumerate(run()):
            error = float((made - exact).norm() / exact.norm())
            if not error <= tolerance:  # not a number is no less than it either
                return f"the error of result {number} is {error:.4f}"
        return None

    return refusal(judged)


def tried(
    name: str, ops: Ops, device: torch.device, dtype: torch.dtype, needs: Sequence[Need] = NEEDS
) -> Iterator[tuple[Tensor, Tensor, float]]:
    """What operation `name` makes of random rows, what its twin does, and the tolerance."""
    numbers = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=numbers).to(device, dtype)

    first, second = (random(PROMPTS, ROWS, HEADS * WIDTH) for _ in range(2))
    shift, scale, gate = (random(2, HEADS * WIDTH) for _ in range(3))
    heads, weight = first.view(PROMPTS, ROWS, HEADS, WIDTH), random(WIDTH)
    turns = random(ROWS, WIDTH // 2).float()
    run, twin = getattr(ops, name), getattr(PLAIN, name)
    if name == "norm_rotate":
        # Other rows lie between those of one prompt and of the next.
        made, exact = (random(PROMPTS, ROWS + 5, HEADS, WIDTH)[:, :ROWS] for _ in range(2))
        run(heads, weight, turns.cos(), turns.sin(), made)
        twin(heads, weight, turns.cos(), turns.sin(), exact)
        yield made.double(), exact.double(), TOLERANCE
        return
    if name == "gate_norm_modulate":
        for need in needs:
            sums, exact_sums = first.clone(), first.clone()
            fed, exact_fed = (
                do(x, second.clone(), gate, shift, scale, SPLIT, need)
                for do, x in ((run, sums), (twin, exact_sums))
            )
            yield sums.double(), exact_sums.double(), TOLERANCE
            yield from compared(fed, exact_fed)
        return
    given: dict[str, tuple[Any, ...]] = {
        "norm_modulate": (first, shift, scale, SPLIT),
        "gelu": (first,),
        "feed": ([first[:1], second[:1, SPLIT:]],),
    }
    for need in needs:
        made, exact = run(*given[name], need), twin(*given[name], need)
        yield from compared(made, exact)


def compared(made: Fed, exact: Fed) -> Iterator[tuple[Tensor, Tensor, float]]:
    """The forms of `made` and `exact`, e4m3 times its scales."""
    if exact.whole is not None and made.whole is not None:
        yield made.whole.double(), exact.whole.double(), TOLERANCE
    if exact.small is not None and exact.scale is not None:
        assert made.small is not None and made.scale is not None
        yield made.small.double() * made.scale, exact.small.double() * exact.scale, TOLERANCE_SMALL
