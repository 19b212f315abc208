"""What one block costs the host for both prompts: microseconds between the card's kernels.

    python -m tests.bench.host --out FILE
    python -m tests.bench.host --profile NAME        # where they go in a case with NAME in its name

Sixty blocks so small that a card has next to nothing to do. Without a card nothing computes:
Triton's kernels are compiled for one and launched by a driver that does nothing, products and
attention only make their results. What remains is looking up, binding and allocating.
"""

from __future__ import annotations

import argparse
import cProfile
import itertools
import pstats
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from tests.bench.record import Record
from vellumd.engine import attention, precision
from vellumd.engine.bench.workload import Workload, random_transformer
from vellumd.engine.kernels import choice, heads
from vellumd.engine.plan import Plan
from vellumd.engine.rows import BOTH
from vellumd.engine.transformer import Own, Velocity

CUDA = torch.cuda.is_available()
DEVICE = torch.device("cuda", 0) if CUDA else torch.device("cpu")
DTYPE = torch.bfloat16
BLOCKS = 60
CONFIG: dict[str, Any] = {
    "num_layers": BLOCKS, "zero_cond_t": True, "num_attention_heads": 1, "attention_head_dim": 128,
    "joint_attention_dim": 32,
}  # fmt: skip
AREA, TEXT = 64 * 64, 8
ROUNDS = 50
CASES = {
    "fp8-rows": ("fp8-rows", False),
    "fp8-rows, 8-bit attention, references used again": ("fp8-rows", True),
}
"""Name to the recipe, and whether it is turbo's."""


def driver(launch: Callable[..., object]) -> Any:
    """A driver for Triton that compiles for SM90 and hands launches to `launch`."""
    from triton.backends.compiler import GPUTarget

    functions = itertools.count()
    utils = SimpleNamespace(
        load_binary=lambda *_: (True, next(functions), 0, 0, 1024),
        get_device_properties=lambda _: {"max_shared_mem": 1 << 17},
    )
    return SimpleNamespace(
        utils=utils, launcher_cls=lambda *_: launch, get_current_device=lambda: 0,
        get_current_stream=lambda _: 0, get_current_target=lambda: GPUTarget("cuda", 90, 32),
    )  # fmt: skip


def without_a_card() -> None:
    """Have nothing computed: neither Triton's kernels nor FP8 products."""
    import triton

    triton.runtime.driver.set_active(driver(lambda *_: None))

    def product(x: Tensor, weight: Tensor, *, out: Tensor | None = None, **given: Any) -> Tensor:
        made = x.new_empty(x.shape[0], weight.shape[1], dtype=given["out_dtype"])
        return made if out is None else out

    torch._scaled_mm = product  # type: ignore[assignment]


def attentions(turbo: bool) -> attention.Attention:
    """The kernel that runs; without a card the rounding of turbo's alone."""
    if CUDA:
        chosen = attention.choose_8bit(DEVICE, DTYPE) if turbo else None
        return (chosen or attention.choose("auto", DEVICE, DTYPE)).attention

    def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        if turbo:
            heads.by_head_triton(query, key, value)
        return query

    return attend


def forward(recipe: str, turbo: bool) -> tuple[Velocity, Tensor]:
    """A forward of an edit with one reference, and what its second step is given."""
    model = random_transformer(CONFIG, DEVICE, DTYPE)
    precision.hold(model, precision.RECIPES[recipe])
    ops = choice.choose("auto", DEVICE, DTYPE).ops if CUDA else choice.TRITON
    own = Own(model, attentions(turbo), ops)
    given, tokens = Workload.of(model, AREA, 1, TEXT).inputs(model, DEVICE)
    plan = Plan.of(2, every=2) if turbo else Plan.full(2)
    velocity = own.prepare(given, torch.tensor([1000.0, 500.0], device=DEVICE), plan)
    velocity(0, BOTH, tokens)
    return velocity, tokens


def microseconds(velocity: Velocity, tokens: Tensor) -> dict[str, float]:
    """Of the host for a block, over some forwards; the card is waited for between them."""
    found = []
    for _ in range(ROUNDS):
        if CUDA:
            torch.cuda.synchronize()
        began = time.perf_counter()
        velocity(1, BOTH, tokens)
        found.append((time.perf_counter() - began) * 1e6 / BLOCKS)
    return {"least_us": round(min(found), 1), "median_us": round(statistics.median(found), 1)}


@torch.inference_mode()
def main() -> None:
    """Measure each case; or tell where the time of some goes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--profile", metavar="NAME")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if not CUDA:
        without_a_card()
    record = Record(args.out)
    for name, (recipe, turbo) in CASES.items():
        velocity, tokens = forward(recipe, turbo)
        if args.profile is None:
            record[name] = microseconds(velocity, tokens)
        elif args.profile in name:
            velocity(1, BOTH, tokens)
            with cProfile.Profile() as profile:
                velocity(1, BOTH, tokens)
            pstats.Stats(profile).sort_stats("tottime").print_stats(30)


if __name__ == "__main__":
    main()
