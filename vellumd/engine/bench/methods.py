"""The methods that are compared, all over the same weights."""

# diffusers annotates in part only.
# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from peft import LoraConfig
from torch import Tensor

from vellumd.engine import attention, precision
from vellumd.engine.bench.workload import TIMES, Workload
from vellumd.engine.kernels import choice
from vellumd.engine.lora import Branched, Pair
from vellumd.engine.plan import Plan
from vellumd.engine.transformer import Forward, Own, Stock

FP8 = torch.float8_e4m3fn
DIFFUSERS = "diffusers"
"""The method that errors are told against: weights as they are, diffusers' forward."""
RANK = 64
"""That of the Lightning LoRAs."""
SPARED = ("pos_embed", "patch_embed", "norm", "^proj_in$", "^proj_out$", "lora_")
"""What the predecessor's casting leaves alone: diffusers' own list, and LoRAs."""


@dataclass
class Method:
    """A way to run a forward. `exactness` is its class (docs/performance.md)."""

    name: str
    exactness: str
    transformer: Any
    forward: Forward
    plan: Plan
    run: Callable[[], Tensor]
    flops: float


def methods(base: Any, workload: Workload, device: torch.device) -> Iterator[Method]:
    """Every method that runs on `device` over the weights of `base`, one after another."""
    given, tokens = workload.inputs(base, device)
    times = torch.tensor(TIMES, device=device)
    full, reuse = Plan.full(len(TIMES)), Plan.of(len(TIMES), every=len(TIMES))

    def method(
        name: str, exactness: str, model: Any, forward: Forward, plan: Plan = full
    ) -> Method:
        step, prepared = len(TIMES) - 1, forward.prepare(given, times, plan)
        prepared(0, 0, tokens)
        flops = workload.flops(fresh=step in plan.fresh)
        return Method(
            name, exactness, model, forward, plan, lambda: prepared(step, 0, tokens), flops
        )

    old = predecessor(base)
    yield method("predecessor: FP8 cast by layer, LoRA", "Q", old, Stock(old))
    yield method(DIFFUSERS, "-", base, Stock(base))
    dtype = base.img_in.weight.dtype
    plain = str(dtype).removeprefix("torch.")
    best = attention.choose("auto", device, dtype)
    ops = choice.choose("auto", device, dtype).ops
    yield method(f"{plain}, {best.name}", "C", base, Own(base, best.attention, ops))
    if ops is not choice.PLAIN:
        yield method(f"{plain}, {best.name}, no Triton", "C", base, Own(base, best.attention))
    for recipe in precision.RECIPES.values():
        if recipe.linear is None or precision.complaint(recipe, device):
            continue
        model = clone(base)
        precision.hold(model, recipe)
        yield method(f"{recipe.name}, {best.name}", "Q", model, Own(model, best.attention, ops))
        if recipe is precision.WEIGHTS:
            continue
        yield from _faster(method, recipe.name, model, best, ops, reuse, device)


def _faster(
    method: Callable[..., Method], name: str, model: Any, best: attention.Choice, ops: choice.Ops,
    reuse: Plan, device: torch.device,
) -> Iterator[Method]:  # fmt: skip
    """What goes with FP8: a LoRA, 8-bit attention, keys and values used again."""
    branched = clone(model)
    branch(branched)
    own = Own(branched, best.attention, ops)
    yield method(f"{name}, {best.name}, LoRA", "Q", branched, own)
    small = attention.choose_8bit(device, model.img_in.weight.dtype)
    if small:
        own = Own(model, small.attention, ops)
        yield method(f"{name}, {small.name}", "A", model, own)
    used = small or best
    own = Own(model, used.attention, ops)
    yield method(f"{name}, {used.name}, references used again", "A", model, own, reuse)


def clone(model: Any) -> Any:
    """Modules of their own over the same tensors."""
    tensors = [*model.parameters(), *model.buffers()]
    return copy.deepcopy(model, {id(tensor): tensor for tensor in tensors})


def predecessor(base: Any) -> Any:
    """Weights cast to e4m3 without scales and back before each layer, with a LoRA beside."""
    model = clone(base)
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            own = torch.nn.Parameter(parameter.detach().clone(), requires_grad=False)
            setattr(module, name, own)
    names = [name for name, _ in precision.small_linears(base)]
    model.add_adapter(LoraConfig(r=RANK, lora_alpha=RANK, target_modules=names))
    model.enable_layerwise_casting(
        storage_dtype=FP8, compute_dtype=base.img_in.weight.dtype, skip_modules_pattern=SPARED
    )
    return model.eval().requires_grad_(False)


def branch(model: Any) -> None:
    """Put a random LoRA of rank `RANK` beside each linear of the blocks."""
    like = model.img_in.weight
    for name, linear in list(precision.small_linears(model)):
        down = torch.randn(RANK, linear.in_features, device=like.device) / linear.in_features**0.5
        up = torch.zeros(linear.out_features, RANK, device=like.device)
        pair = Pair(down.to(like.dtype), up.to(like.dtype), 1.0)
        precision.put(model, name, Branched(linear, [pair]))
