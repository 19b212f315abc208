"""What only a card can tell of kernels and blocks, with random weights of the real size.

    python -m tests.bench.blocks kernels --out FILE
    python -m tests.bench.blocks kernels --tiny       # on any machine: does the script run?

`kernels`: which run, their errors and times. `loop`: nothing in it waits for the card.
`trace`: where one full block's milliseconds go, alone and scaled to 60. `sizes`: all methods
over 1, 2, 3 references of 0.5, 1, 2 megapixels, one block in five.
"""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from tests.bench.record import Record
from tests.bench.trace import of_block
from vellumd.engine import attention, precision, schedule
from vellumd.engine.bench import run as bench
from vellumd.engine.bench.measure import WARM, timed
from vellumd.engine.bench.workload import Workload, random_transformer
from vellumd.engine.denoise import denoise
from vellumd.engine.kernels import choice, heads
from vellumd.engine.kernels.choice import PLAIN, TRITON
from vellumd.engine.kernels.feed import Need
from vellumd.engine.plan import Plan
from vellumd.engine.rows import BOTH
from vellumd.engine.transformer import Own
from vellumd.engine.trial import refusal

CUDA = torch.cuda.is_available()
DEVICE = torch.device("cuda", 0) if CUDA else torch.device("cpu")
DTYPE = torch.bfloat16 if CUDA else torch.float32
REAL: dict[str, Any] = {"zero_cond_t": True}
TINY: dict[str, Any] = REAL | {
    "num_attention_heads": 2, "attention_head_dim": 32, "axes_dims_rope": (8, 12, 12),
    "joint_attention_dim": 32,
}  # fmt: skip
Pair = tuple[Callable[[], object], Callable[[], object]]


class Scale:
    """The sizes that are measured: the real ones, or tiny ones."""

    def __init__(self, *, tiny: bool) -> None:
        self.config = TINY if tiny else REAL
        self.area = 128 * 128 if tiny else 1024 * 1024
        self.rows, self.heads, self.width = (70, 2, 32) if tiny else (17_066, 24, 128)
        self.rounds = 1 if tiny else 10
        self.tiny = tiny

    def model(self, layers: int) -> Any:
        """A transformer with random weights."""
        return random_transformer(self.config | {"num_layers": layers}, DEVICE, DTYPE)

    def own(self, model: Any, kernel: attention.Attention | None = None) -> Own:
        """Our forward over it, with the best kernels; with `kernel` as attention, if given."""
        width = model.config.attention_head_dim
        best = kernel or attention.choose("auto", DEVICE, DTYPE, width).attention
        return Own(model, best, choice.choose("auto", DEVICE, DTYPE).ops)


def kernels(scale: Scale, record: Record) -> None:
    """Which recipes, attention and Triton kernels run, how far off, and milliseconds."""
    record["recipes"] = {
        name: precision.complaint(recipe, DEVICE) or "runs"
        for name, recipe in precision.RECIPES.items()
    } | {"triton": precision.without_triton(DEVICE) or "runs"}
    shape = 1, scale.rows, scale.heads, scale.width
    mixed = [torch.randn(shape, device=DEVICE, dtype=DTYPE) for _ in range(3)]
    for name, kernel in (attention.KINDS | attention.KINDS_8BIT).items():
        tolerance = attention.TOLERANCE_8BIT if "8bit" in name else attention.TOLERANCE
        why = attention.complaint(kernel, tolerance, DEVICE, DTYPE, scale.width)
        record[f"attention {name}"] = why or {
            "error": round(attention.tried(kernel, DEVICE, DTYPE, scale.width), 5),
            "ms": milliseconds(partial(kernel, *mixed), scale.rounds),
        }
    record["attention, rows that are new, ms"] = {
        name: new_rows(kernel, mixed)
        for name, kernel in attention.KINDS.items()
        if attention.complaint(kernel, attention.TOLERANCE, DEVICE, DTYPE, scale.width) is None
    }
    del mixed
    record["fa3, both prompts"] = both_prompts(scale)
    for name, (triton, plain) in operations(scale).items():
        kind = name.split()[0]
        why = None if kind == "by_head" else choice.complaint(kind, TRITON, DEVICE, DTYPE)
        record[name] = {"plain_ms": milliseconds(plain, scale.rounds)} | (
            {"refused": why or "no card"} if why or not CUDA
            else {"triton_ms": milliseconds(triton, scale.rounds)}
        )  # fmt: skip


def new_rows(kernel: attention.Attention, mixed: list[torch.Tensor]) -> list[float]:
    """Milliseconds of each of three calls, of a number of rows that none had before: some plan."""
    rows = mixed[0].shape[1]
    return [
        round(1000 * timed(partial(kernel, *(x[:, : rows - fewer] for x in mixed)), DEVICE), 2)
        for fewer in (1, 2, 3)
    ]


def both_prompts(scale: Scale) -> dict[str, Any]:
    """FA3 for two prompts by a call each, and by one call, where no tile waits for the other's.

    What one call gives is compared with what two give. Text differs in length.
    """
    rows = scale.rows, scale.rows - 30
    query, key, value = (
        torch.randn(sum(rows), scale.heads, scale.width, device=DEVICE, dtype=DTYPE)
        for _ in range(3)
    )
    ends = torch.tensor([0, rows[0], sum(rows)], device=DEVICE, dtype=torch.int32)
    parts = [torch.split(x[None], rows, dim=1) for x in (query, key, value)]

    def each() -> list[torch.Tensor]:
        return [attention.fa3(*three) for three in zip(*parts, strict=True)]

    def one() -> torch.Tensor:
        kernel = importlib.import_module("fa3_fwd_interface").flash_attn_varlen_func
        made = kernel(query, key, value, ends, ends, max(rows), max(rows))
        return made[0] if isinstance(made, tuple) else made

    found: dict[str, Any] = {}

    def measure() -> None:
        exact = torch.cat(each(), dim=1)[0].double()
        found["error"] = float((one().double() - exact).norm() / exact.norm())
        for _ in range(2):  # in turns: the card's clock changes
            for name, run in (("a call each", each), ("one call", one)):
                found.setdefault(f"{name}, ms", []).append(milliseconds(run, scale.rounds))

    why = refusal(measure)
    return {"refused": why} if why else found


def operations(scale: Scale) -> dict[str, Pair]:
    """Each operation at full size: Triton's, and the plain one."""
    rows, width, channels = scale.rows, scale.width, scale.heads * scale.width
    x, y = (torch.randn(1, rows, channels, device=DEVICE, dtype=DTYPE) for _ in range(2))
    wide = torch.randn(1, rows, 4 * channels, device=DEVICE, dtype=DTYPE)
    shift, gain = (torch.randn(2, channels, device=DEVICE, dtype=DTYPE) for _ in range(2))
    weight = torch.randn(width, device=DEVICE, dtype=DTYPE)
    turns = torch.randn(rows, width // 2, device=DEVICE)
    split, by_head = rows // 4, x.view(1, rows, scale.heads, width)
    rotated = by_head, weight, turns.cos(), turns.sin(), torch.empty_like(by_head)
    three = by_head, by_head, by_head
    found: dict[str, Pair] = {
        "by_head of three": (
            partial(heads.by_head_triton, *three),
            partial(heads.by_head, *three),
        )
    }

    def add(name: str, kind: str, *given: Any) -> None:
        found[name] = partial(getattr(TRITON, kind), *given), partial(getattr(PLAIN, kind), *given)

    for need, form in ((Need(True, False), "whole"), (Need(False, True), "e4m3")):
        add(f"norm_modulate {form}", "norm_modulate", x, shift, gain, split, need)
        gated = x, y, gain * 0.01, shift, gain, split, need
        add(f"gate_norm_modulate {form}", "gate_norm_modulate", *gated)
        add(f"gelu {form}", "gelu", wide, need)
    add("feed e4m3", "feed", [x], Need(False, True))
    add("norm_rotate", "norm_rotate", *rotated)
    return found


def milliseconds(run: Callable[[], object], rounds: int) -> float:
    """The median of `rounds`."""
    with torch.inference_mode():
        for _ in range(WARM):
            run()
        return round(1000 * sorted(timed(run, DEVICE) for _ in range(rounds))[rounds // 2], 4)


def loop(scale: Scale, record: Record) -> None:
    """Four steps under CUDA's own watch: any wait for the card is an error."""
    model = scale.model(2)
    given, tokens = Workload.of(model, scale.area, references=1).inputs(model, DEVICE)
    own = scale.own(model)
    for watched in ("default", "error"):
        scheduler = schedule.schedule(schedule.LIGHTNING, "lightning", 4, tokens.shape[1], DEVICE)
        if CUDA:
            torch.cuda.synchronize()
            torch.cuda.set_sync_debug_mode(watched)
        try:
            denoise(own, scheduler, tokens, given, 3.0, Plan.full(4), lambda *_: None)
        finally:
            if CUDA:
                torch.cuda.set_sync_debug_mode("default")
    # Only a card is watched: elsewhere nothing was found out.
    record["waits"] = 0 if CUDA else None


@torch.inference_mode()
def trace(scale: Scale, record: Record) -> None:
    """What the kernels of one full block of the reference job take, by recipe and tier.

    Both prompts pass it at once; a forward's share is told. The first of two blocks: the last
    one's rows are fewer. `again`: a step that uses the references' keys and values again.
    """
    width = scale.config.get("attention_head_dim", scale.width)
    small = attention.choose_8bit(DEVICE, DTYPE, width)
    cases: list[tuple[str, str, Any, Plan]] = [
        ("fp8-rows", "fp8-rows", None, Plan.full(1)),
        ("fp8-rows, 8-bit attention", "fp8-rows", small, Plan.full(1)),
        ("fp8-rows, again", "fp8-rows", None, Plan.of(2, every=2)),
        ("bf16", "bf16", None, Plan.full(1)),
        ("fp8-weights", "fp8-weights", None, Plan.full(1)),
    ]
    for name, recipe, kernel, plan in cases:
        model = scale.model(2)
        precision.hold(model, precision.RECIPES[recipe])
        given, tokens = Workload.of(model, scale.area, references=3).inputs(model, DEVICE)
        own = scale.own(model, kernel.attention if kernel else None)
        times = torch.linspace(1000.0, 500.0, plan.steps, device=DEVICE)
        velocity = own.prepare(given, times, plan)

        def forward(velocity: Any = velocity, tokens: Any = tokens, plan: Plan = plan) -> None:
            for step in range(plan.steps):
                velocity(step, BOTH, tokens)

        record[name] = of_block(forward, own.blocks[0], DEVICE, len(BOTH))


def sizes(scale: Scale, record: Record) -> None:
    """The methods that matter over references and megapixels."""
    model = scale.model(2 if scale.tiny else 12)
    only, skip = "predecessor;fp8-rows", "compiled;no Triton;fa3, LoRA"
    wanted = argparse.Namespace(only=only, skip=skip, rounds=1 if scale.tiny else 3)
    for references in (1, 2, 3):
        for megapixels in (0.5, 1, 2):
            area = round(scale.area * megapixels)
            workload = Workload.of(model, area, references)
            record[f"{references} of {megapixels}"] = {
                "rows": workload.rows,
                "methods": bench.compared(model, workload, DEVICE, wanted),
            }


PARTS = {part.__name__: part for part in (kernels, loop, trace, sizes)}


def main() -> None:
    """Measure one part."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--tiny", action="store_true")
    args = parser.parse_args()
    PARTS[args.part](Scale(tiny=args.tiny), Record(args.out))


if __name__ == "__main__":
    main()
