"""What a block costs the host: microseconds between the card's kernels.

Of the transformer for both prompts, of the language model for a text, of the vision tower; of the
last two by transformers' own forward too.

    python -m tests.bench.host --out FILE
    python -m tests.bench.host --profile NAME        # where they go in a case with NAME in its name

Blocks so small that a card has next to nothing to do. Without a card nothing computes:
Triton's kernels are compiled for one and launched by a driver that does nothing, products, norms
and attention only make their results. What remains is looking up, binding and allocating.
"""

from __future__ import annotations

import argparse
import cProfile
import inspect
import itertools
import pstats
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import transformers
from torch import Tensor

from tests.bench.record import Record
from vellumd.engine import attention, language, precision, qwen_vl, vision
from vellumd.engine.bench.workload import Workload, random_transformer
from vellumd.engine.kernels import choice
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
    "fp8-rows, references used again": ("fp8-rows", True),
}
"""Name to the recipe, and whether it is turbo's."""
LAYERS = 28
"""Of the language model; the tower has 32 blocks, and here as many."""
TOWER: dict[str, Any] = {
    "hidden_size": 32, "intermediate_size": 32, "depth": LAYERS, "num_heads": 2,
    "out_hidden_size": 32, "fullatt_block_indexes": [6, 13, 20, 27],
}  # fmt: skip
TEXTS: dict[str, Any] = {
    "vocab_size": 8, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": LAYERS,
    "num_attention_heads": 2, "num_key_value_heads": 1, "bos_token_id": 0, "eos_token_id": 0,
    "rope_parameters": {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 1e6},
}  # fmt: skip
GRIDS = (8, 8), (4, 12), (2, 2)
"""Of patches, in three pictures."""

Case = tuple[Callable[[], object], int]
"""What is timed, and how many blocks it passes."""


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
    """Have nothing computed: neither Triton's kernels nor products, norms and attention."""
    import triton

    triton.runtime.driver.set_active(driver(lambda *_: None))

    def product(x: Tensor, weight: Tensor, *, out: Tensor | None = None, **given: Any) -> Tensor:
        made = x.new_empty(x.shape[0], weight.shape[1], dtype=given["out_dtype"])
        return made if out is None else out

    def linear(self: torch.nn.Linear, x: Tensor) -> Tensor:
        return x.new_empty(*x.shape[:-1], self.out_features)

    def alike(x: Tensor, *_: object, **__: object) -> Tensor:
        return torch.empty_like(x)

    torch._scaled_mm = product  # type: ignore[assignment]
    torch.nn.Linear.forward = linear  # type: ignore[method-assign]
    qwen_vl.rms_norm = alike  # type: ignore[attr-defined]
    for module in (language, vision):
        module.scaled_dot_product_attention = alike  # type: ignore[attr-defined]


def attends() -> attention.Attention:
    """The kernel that runs; without a card none."""
    if CUDA:
        return attention.choose("auto", DEVICE, DTYPE).attention
    return lambda query, key, value: query


def forward(recipe: str, turbo: bool) -> tuple[Velocity, Tensor]:
    """A forward of an edit with one reference, and what its second step is given."""
    model = random_transformer(CONFIG, DEVICE, DTYPE)
    precision.hold(model, precision.RECIPES[recipe])
    ops = choice.choose("auto", DEVICE, DTYPE).ops if CUDA else choice.TRITON
    own = Own(model, attends(), ops)
    given, tokens = Workload.of(model, AREA, 1, TEXT).inputs(model, DEVICE)
    plan = Plan.of(2, every=2) if turbo else Plan.full(2)
    velocity = own.prepare(given, torch.tensor([1000.0, 500.0], device=DEVICE), plan)
    velocity(0, BOTH, tokens)
    return velocity, tokens


def transformer(recipe: str, turbo: bool) -> Case:
    """A step of both prompts."""
    velocity, tokens = forward(recipe, turbo)
    return lambda: velocity(1, BOTH, tokens), BLOCKS


def encoder() -> Any:
    """A Qwen2.5-VL as transformers make it."""
    config = transformers.Qwen2_5_VLConfig(
        text_config=TEXTS, vision_config=TOWER, pad_token_id=0, bos_token_id=0, eos_token_id=0
    )
    model: Any = transformers.Qwen2_5_VLForConditionalGeneration(config).eval().model
    return model.to(DEVICE, DTYPE)


def numbers(start: int) -> tuple[Tensor, Tensor]:
    """A text's tokens and their positions, from `start` on."""
    hidden = torch.zeros(1, TEXT, TEXTS["hidden_size"], device=DEVICE, dtype=DTYPE)
    return hidden, torch.arange(start, start + TEXT, device=DEVICE).expand(3, 1, -1)


def texts() -> Case:
    """Two prompts after pictures that are known."""
    qwen_vl.fuse_norms(model := encoder().language_model)

    def text(start: int, after: language.Kept | None = None) -> language.Text:
        return language.Text(*numbers(start), after)

    begin = text(0)
    language.read(model, [begin])
    return lambda: language.read(model, [text(TEXT, begin.kept) for _ in range(2)]), 2 * LAYERS


def stock_texts() -> Case:
    """The same by transformers' forward."""
    model, kept = encoder().language_model, transformers.DynamicCache()

    parameters = inspect.signature(type(model).forward).parameters
    cache = "cache" if "cache" in parameters else "past_key_values"  # before 5.24

    def read(start: int) -> None:
        hidden, positions = numbers(start)
        model(inputs_embeds=hidden, position_ids=positions, **{cache: kept})

    def both() -> None:
        for _ in range(2):
            read(TEXT)
            kept.crop(-TEXT)

    read(0)
    return both, 2 * LAYERS


def patches() -> Tensor:
    """Those of `GRIDS`."""
    count = sum(rows * columns for rows, columns in GRIDS)
    return torch.zeros(count, 3 * 2 * 14 * 14, device=DEVICE, dtype=DTYPE)


def tower() -> Case:
    """Three pictures, whose windows are of different lengths."""
    qwen_vl.fuse_norms(stock := encoder().visual)
    one, seen = vision.Tower(stock), patches()
    return lambda: one.see(seen, GRIDS), LAYERS


def stock_tower() -> Case:
    """The same by transformers' forward."""
    one, seen = encoder().visual, patches()
    grids = torch.tensor([(1, *grid) for grid in GRIDS], device=DEVICE)
    return lambda: one(seen, grid_thw=grids), LAYERS


def microseconds(work: Callable[[], object], blocks: int) -> dict[str, float]:
    """Of the host for a block, over some rounds; the card is waited for between them."""
    found = []
    for _ in range(ROUNDS):
        if CUDA:
            torch.cuda.synchronize()
        began = time.perf_counter()
        work()
        found.append((time.perf_counter() - began) * 1e6 / blocks)
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
    cases: dict[str, Callable[[], Case]] = {
        name: partial(transformer, *case) for name, case in CASES.items()
    }
    cases |= {
        "a prompt in the language model": texts,
        "the same, transformers' forward": stock_texts,
        "the vision tower": tower,
        "the tower, transformers' forward": stock_tower,
    }
    for name, case in cases.items():
        if args.profile is not None and args.profile not in name:
            continue
        work, blocks = case()
        if args.profile is None:
            record[name] = microseconds(work, blocks)
            continue
        work()
        with cProfile.Profile() as profile:
            work()
        pstats.Stats(profile).sort_stats("tottime").print_stats(30)


if __name__ == "__main__":
    main()
