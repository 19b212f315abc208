"""The methods that are compared, all over the same weights."""

# diffusers annotates in part only.
# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from peft import LoraConfig
from torch import Tensor

from vellumd.engine import attention, precision
from vellumd.engine.bench.workload import TIMES, Workload
from vellumd.engine.kernels import choice
from vellumd.engine.linears import Fp8Linear
from vellumd.engine.lora import Branched, Pair
from vellumd.engine.plan import Plan
from vellumd.engine.rows import BOTH, ONE, Prompts
from vellumd.engine.transformer import Forward, Own, Stock
from vellumd.engine.trial import refusal

FP8 = torch.float8_e4m3fn
PREDECESSOR = "predecessor: FP8 cast by layer, LoRA"
AGAIN = "references used again"
"""What the names of methods end with that keep keys and values: 13 GB with three references."""
COMPILED = "compiled"
"""What the names of methods end with whose blocks torch compiles."""
FULL = Plan.full(len(TIMES))
DIFFUSERS = "diffusers"
"""The method that errors are told against: weights as they are, diffusers' forward."""
RANK = 64
"""That of the Lightning LoRAs."""
SPARED = ("pos_embed", "patch_embed", "norm", "^proj_in$", "^proj_out$", "lora_")
"""What the predecessor's casting leaves alone: diffusers' own list, and LoRAs."""


@dataclass(frozen=True)
class Method:
    """A way to run forwards. `exactness` is its class (docs/performance.md).

    `prepare` gives a forward of each of `prompts` with all that its steps share, from the first
    on; it runs anew on each call. `flops` are those of one.
    """

    name: str
    exactness: str
    transformer: Any
    forward: Forward
    plan: Plan
    prepare: Callable[[], Callable[[], Tensor]]
    flops: float
    prompts: Prompts = ONE


class Methods:
    """Makes the methods that run on `device` over the weights of `base`."""

    def __init__(
        self, base: Any, workload: Workload, device: torch.device, wanted: Callable[[str], bool]
    ) -> None:
        """`wanted` tells by name which methods to make."""
        self._base, self._workload, self._device, self._wanted = base, workload, device, wanted
        self._given, self._tokens = workload.inputs(base, device)
        self._times = torch.tensor(TIMES, device=device)
        self._dtype = base.img_in.weight.dtype
        width = base.config.attention_head_dim
        self._best = attention.choose("auto", device, self._dtype, width)
        self._small = attention.choose_8bit(device, self._dtype, width)
        self._ops = choice.choose("auto", device, self._dtype).ops
        self._common = attention.choose("auto", device, self._dtype, width, without=("fa3",))
        self.refused: dict[str, str] = {}
        """Methods that could not be made, and why."""

    def all(self) -> Iterator[Method]:
        """One after another, those before first."""
        base, best = self._base, self._best
        yield from self._method(PREDECESSOR, "Q", lambda: predecessor(base), Stock)
        yield from self._method(DIFFUSERS, "-", lambda: base, Stock)
        plain = str(self._dtype).removeprefix("torch.")
        yield from self._own(f"{plain}, {best.name}", "C", base)
        held = None
        for recipe in precision.RECIPES.values():
            if recipe.linear is None or precision.complaint(recipe, self._device):
                continue
            if held is None:
                held = clone(base)
                precision.hold(held, recipe)
            model = multiplied(held, recipe)
            yield from self._own(f"{recipe.name}, {best.name}", "Q", model)
            if recipe is precision.ROWS:
                yield from self._faster(recipe.name, model)
            if recipe is precision.WEIGHTS and self._common.name != best.name:
                yield from self._bare(recipe.name, model)

    def _method(
        self, name: str, exactness: str, model: Callable[[], Any],
        forward: Callable[[Any], Forward], plan: Plan = FULL,
    ) -> Iterator[Method]:  # fmt: skip
        """The method of that name, if it is wanted."""
        if not self._wanted(name):
            return
        made: Any = None

        def make() -> None:
            nonlocal made
            made = model()

        if why := refusal(make):
            self.refused[name] = why
            return
        runs, step = forward(made), len(TIMES) - 1
        # As edits that are guided run it; those who run one prompt after the other need just one.
        prompts = BOTH if runs.together else ONE

        def prepare() -> Callable[[], Tensor]:
            velocity = runs.prepare(self._given, self._times, plan)
            return lambda: velocity(step, prompts, self._tokens)

        flops = self._workload.flops(fresh=step in plan.fresh)
        yield Method(name, exactness, made, runs, plan, prepare, flops, prompts)

    def _own(self, name: str, exactness: str, model: Any) -> Iterator[Method]:
        """Our forward with the best kernels, and without Triton and compiled on a card."""
        kernel, ops = self._best.attention, self._ops
        yield from self._method(name, exactness, lambda: model, lambda m: Own(m, kernel, ops))
        if self._device.type == "cuda":
            yield from self._method(
                f"{name}, no Triton", exactness, lambda: model, lambda m: Own(m, kernel)
            )
            yield from self._method(
                f"{name}, {COMPILED}",
                exactness,
                lambda: model,
                lambda m: Own(m, kernel).fused(),
            )

    def _bare(self, name: str, model: Any) -> Iterator[Method]:
        """What is left without packages beside torch."""
        kernel = self._common.attention
        yield from self._method(
            f"{name}, {self._common.name}, no Triton", "Q", lambda: model, lambda m: Own(m, kernel)
        )

    def _faster(self, name: str, model: Any) -> Iterator[Method]:
        """What goes with FP8: a LoRA, 8-bit attention, keys and values used again."""
        best, small, ops = self._best, self._small, self._ops
        yield from self._method(
            f"{name}, {best.name}, LoRA", "Q", lambda: branched(model),
            lambda m: Own(m, best.attention, ops),
        )  # fmt: skip
        if small:
            yield from self._method(
                f"{name}, {small.name}", "A", lambda: model, lambda m: Own(m, small.attention, ops)
            )
        yield from self._method(
            f"{name}, {best.name}, {AGAIN}", "A", lambda: model,
            lambda m: Own(m, best.attention, ops), Plan.of(len(TIMES), every=len(TIMES)),
        )  # fmt: skip


def clone(model: Any) -> Any:
    """Modules of their own over the same tensors."""
    tensors = [*model.parameters(), *model.buffers()]
    return copy.deepcopy(model, {id(tensor): tensor for tensor in tensors})


def predecessor(base: Any) -> Any:
    """Weights cast to e4m3 without scales and back before each layer, with a LoRA beside."""
    model = clone(base)
    names = [name for name, _ in precision.small_linears(base)]
    model.add_adapter(LoraConfig(r=RANK, lora_alpha=RANK, target_modules=names))
    for path, module in model.named_modules():
        spared = any(re.search(pattern, path) for pattern in SPARED)
        if not spared and isinstance(module, torch.nn.Linear):
            for name, parameter in list(module.named_parameters(recurse=False)):
                small = torch.nn.Parameter(parameter.detach().to(FP8), requires_grad=False)
                setattr(module, name, small)
    model.enable_layerwise_casting(
        storage_dtype=FP8, compute_dtype=base.img_in.weight.dtype, skip_modules_pattern=SPARED
    )
    return model.eval().requires_grad_(False)


def multiplied(held: Any, recipe: precision.Recipe) -> Any:
    """A transformer whose weights are FP8, the same ones, multiplied as `recipe` says."""
    assert recipe.linear is not None
    model = clone(held)
    for name, linear in list(precision.small_linears(model)):
        assert isinstance(linear, Fp8Linear)
        other = recipe.linear(linear.in_features, linear.out_features, bias=None)
        other.weight, other.scale, other.bias = linear.weight, linear.scale, linear.bias
        precision.put(model, name, other)
    return model


def branched(held: Any) -> Any:
    """`held` with a random LoRA of rank `RANK` beside each linear of the blocks."""
    model = clone(held)
    like = model.img_in.weight
    for name, linear in list(precision.small_linears(model)):
        down = torch.randn(RANK, linear.in_features, device=like.device) / linear.in_features**0.5
        up = torch.zeros(linear.out_features, RANK, device=like.device)
        pair = Pair(down.to(like.dtype), up.to(like.dtype), 1.0)
        precision.put(model, name, Branched(linear, [pair]))
    return model
