"""Recipes: how the transformer's blocks hold and multiply their weights.

Which of them a card can run is found by running it, never by the card's name
(docs/precision.md).
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from vellumd import errors
from vellumd.engine import linears
from vellumd.engine.reading import StoredTensor
from vellumd.engine.trial import refusal
from vellumd.engine.weights import Fit
from vellumd.settings import EngineSettings
from vellumd.weights.checkpoint import Scaling

log = logging.getLogger(__name__)

TOLERANCE = 0.04
"""Largest relative error of a linear: rounding both operands to e4m3 gives 0.037."""
PROBE = 250, 384, 512
"""Tokens, inputs and outputs of the probe; the number of tokens divides by nothing, as in
an edit."""

BLOCKS = "transformer_blocks."
KEPT = ("img_mod.1", "txt_mod.1")
"""Linears of a block that stay as they are, as all outside the blocks do: rounding all of
them gave an LPIPS of .39, without these .17 (vllm-project/vllm-omni#2728, #2795)."""


@dataclass(frozen=True)
class Recipe:
    """A way to hold and multiply weights; `linear` is None where they stay as they are.

    `fused`: it pays only where Triton fuses the rounding of activations with what made
    them. On an H100 the bare FP8 GEMMs took longer than bfloat16's (docs/precision.md).
    """

    name: str
    linear: type[linears.Fp8Linear] | None
    fused: bool = False


ROWS = Recipe("fp8-rows", linears.RowGemm, fused=True)
TENSOR = Recipe("fp8-tensor", linears.TensorGemm, fused=True)
WEIGHTS = Recipe("fp8-weights", linears.WeightOnly)
PLAIN = Recipe("bf16", None)
RECIPES = {recipe.name: recipe for recipe in (ROWS, TENSOR, WEIGHTS, PLAIN)}
"""All recipes by name, the best first."""


@dataclass(frozen=True)
class Choice:
    """The recipe that runs, and why each better one does not."""

    recipe: Recipe
    refused: dict[str, str]


def choose(settings: EngineSettings, device: torch.device) -> Choice:
    """The best recipe that runs on `device` within the tier, or the one that is wanted.

    A CPU has no use for FP8: weights stay as they are there unless a recipe is wanted.
    Raises `RecipeUnsupported` where the one that is wanted does not run.
    """
    if settings.recipe != "auto":
        recipe = RECIPES[settings.recipe]
        if why := complaint(recipe, device):
            log.error("the recipe %s does not run on %s: %s", recipe.name, device, why)
            raise errors.RecipeUnsupported(
                f"The recipe {recipe.name!r} does not run on this machine."
            )
        return Choice(recipe, {})
    if settings.tier == "reference" or device.type == "cpu":
        return Choice(PLAIN, {})
    refused: dict[str, str] = {}
    for recipe in RECIPES.values():
        why = complaint(recipe, device)
        if why is None and recipe.fused:
            why = unfused(settings, device)
        if why is None:
            return Choice(recipe, refused)
        log.info("recipe %s is left out: %s", recipe.name, why)
        refused[recipe.name] = why
    return Choice(PLAIN, refused)


def complaint(recipe: Recipe, device: torch.device) -> str | None:
    """Why `recipe` cannot be used on `device`, found by running it; None if it can.

    An error that has lost the card is raised: nothing runs after it.
    """
    kind = recipe.linear
    if kind is None:
        return None

    def judged() -> str | None:
        error = tried(kind, device)
        # Not a number is no less than the tolerance either.
        return None if error <= TOLERANCE else f"its error is {error:.3f}"

    return refusal(judged)


@torch.inference_mode()
def tried(kind: type[linears.Fp8Linear], device: torch.device) -> float:
    """The relative error of a small linear of this kind against float64 on the CPU."""
    tokens, inputs, outputs = PROBE
    numbers = torch.Generator().manual_seed(0)
    weight = torch.randn(outputs, inputs, generator=numbers) * 0.02
    x = torch.randn(tokens, inputs, generator=numbers)
    # Rows and tokens of very different size, each told by its own: one scale for all shows.
    rows, sizes = torch.logspace(-3, 0, outputs), torch.logspace(-2, 2, tokens)[:, None]
    exact = torch.nn.functional.linear(x.double(), weight.double())
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    linear = kind(inputs, outputs, bias=dtype, device=device)
    fill(linear, weight * rows[:, None], torch.zeros(outputs))
    y = linear((x * sizes).to(device, dtype)).cpu().double() / rows / sizes
    return float((y - exact).norm() / exact.norm())


def unfused(settings: EngineSettings, device: torch.device) -> str | None:
    """Why nothing rounds activations along with what makes them; None if something does."""
    if settings.forward == "stock":
        return "diffusers' forward rounds by itself"
    if settings.kernels == "plain" and not settings.compile:
        return "plain kernels round by themselves"
    return without_triton(device)


def without_triton(device: torch.device) -> str | None:
    """Why Triton fuses nothing on `device`, found by running a kernel; None if it does."""

    def judged() -> str | None:
        from vellumd.engine import triton_probe

        return None if triton_probe.runs(device) else "its kernels give wrong numbers"

    # Not installed, no compiler, no such card ..
    why = refusal(judged)
    return why and f"Triton does not run ({why})"


def fill(linear: linears.Fp8Linear, weight: Tensor, bias: Tensor | None = None) -> None:
    """Give `linear`, which is on a device, the rounded `weight` and the `bias`."""
    rounded, scale = linears.by_row(weight)
    linear.weight.data.copy_(rounded)
    linear.scale.data.copy_(scale)
    if bias is not None and linear.bias is not None:
        linear.bias.data.copy_(bias)


def is_small(name: str, keep: Iterable[str] = ()) -> bool:
    """Whether the linear `name` of the transformer is held as FP8.

    Those of the blocks are, without the keep-list and what ends in one of `keep`.
    """
    return name.startswith(BLOCKS) and not name.endswith((*KEPT, *keep))


def small_linears(
    transformer: torch.nn.Module, keep: Iterable[str] = ()
) -> Iterator[tuple[str, torch.nn.Linear | linears.Fp8Linear]]:
    """The linears of `transformer` that a recipe makes small, by name."""
    for name, module in transformer.named_modules():
        if isinstance(module, (torch.nn.Linear, linears.Fp8Linear)) and is_small(name, keep):
            yield name, module


def fitting(
    transformer: torch.nn.Module, recipe: Recipe, dtype: torch.dtype, keep: Iterable[str] = ()
) -> Fit:
    """Put the recipe's linears, without values, into `transformer`; what fits files to them.

    Weights that are FP8 in the file are final: they keep their numbers, and their scale or
    1. All others are rounded once, on the device. What is not FP8 becomes `dtype`.
    """
    small: set[str] = set()
    if recipe.linear is not None:
        for name, linear in list(small_linears(transformer, keep)):
            put(transformer, name, recipe.linear.like(linear))
            small.add(f"{name}.weight")

    def fit(stored: StoredTensor) -> dict[str, Tensor]:
        name = stored.stored.name
        if name not in small:
            return {name: stored.dense(dtype)}
        if stored.stored.full_precision:
            # ComfyUI's mark of layers whose products shall be in 16 bits.
            module = name.removesuffix(".weight")
            put(transformer, module, linears.WeightOnly.like(transformer.get_submodule(module)))
        rounded, scale = final(stored) or linears.by_row(stored.dense(torch.float32))
        return {name: rounded, f"{name.removesuffix('weight')}scale": scale}

    return fit


def final(stored: StoredTensor) -> tuple[Tensor, Tensor] | None:
    """A stored weight as e4m3 and scales by row, where it is that without a loss."""
    weight = stored.weight
    if weight.dtype is not linears.FP8 or stored.stored.scaling is Scaling.BLOCK:
        return None
    one = torch.ones(len(weight), 1, device=weight.device)
    return weight, one if stored.scale is None else (one * stored.spread()).contiguous()


def hold(transformer: torch.nn.Module, recipe: Recipe, keep: Iterable[str] = ()) -> None:
    """Round the weights of a loaded `transformer` as `recipe` says."""
    if recipe.linear is None:
        return
    for name, linear in list(small_linears(transformer, keep)):
        small = recipe.linear.like(linear)
        fill(small, linear.weight.detach(), None if linear.bias is None else linear.bias.detach())
        put(transformer, name, small)


def put(model: torch.nn.Module, name: str, module: torch.nn.Module) -> None:
    """Set the submodule `name` of `model`; numbers in it index lists."""
    home, _, last = name.rpartition(".")
    setattr(model.get_submodule(home), last, module)
