"""Everything that only a card can tell, in one go, with random weights of the real size.

    python -m tests.bench.card --out FOLDER [--quick]

Writes one JSON file a part as soon as it is measured, so a run that is cut short loses only
what was under way. Parts, most wanted first: `kernels` (which run, their errors and times),
`reference` (all methods on the reference job), `1-reference`, `loop` (nothing in it waits
for the card), `sizes` (1, 2, 3 references of 0.5, 1, 2 megapixels), `trace` (where one
block's milliseconds go). Whole edits: `python -m tests.bench.full_size`.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from vellumd.engine import attention, precision, schedule
from vellumd.engine.bench.measure import WARM, timed
from vellumd.engine.bench.workload import Workload, random_transformer
from vellumd.engine.denoise import denoise
from vellumd.engine.kernels import choice
from vellumd.engine.kernels.choice import PLAIN, TRITON
from vellumd.engine.kernels.feed import Need
from vellumd.engine.plan import Plan
from vellumd.engine.transformer import Own

DEVICE = torch.device("cuda", 0)
DTYPE = torch.bfloat16
AREA = 1024 * 1024


def kernels() -> dict[str, Any]:
    """Which attention and Triton kernels run, how far off, and milliseconds at full size."""
    rows, heads, width = 17_066, 24, 128
    mixed = [torch.randn(1, rows, heads, width, device=DEVICE, dtype=DTYPE) for _ in range(3)]
    found: dict[str, Any] = {"attention": {}, "operations": {}, "recipes": {}}
    for name, kernel in (attention.KINDS | attention.KINDS_8BIT).items():
        tolerance = attention.TOLERANCE_8BIT if "8bit" in name else attention.TOLERANCE
        why = attention.complaint(kernel, tolerance, DEVICE, DTYPE)
        if why is None:
            why = {
                "error": attention.tried(kernel, DEVICE, DTYPE),
                "ms": milliseconds(partial(kernel, *mixed)),
            }
        found["attention"][name] = why
    del mixed
    for name, (triton, plain) in operations(rows - 650, heads, width).items():
        found["operations"][name] = {
            "complaint": choice.complaint(name.split()[0], TRITON, DEVICE, DTYPE),
            "plain_ms": milliseconds(plain),
            "triton_ms": milliseconds(triton),
        }
    for name, recipe in precision.RECIPES.items():
        found["recipes"][name] = precision.complaint(recipe, DEVICE)
    return found


def operations(
    rows: int, heads: int, width: int
) -> dict[str, tuple[Callable[[], object], Callable[[], object]]]:
    """Each operation at full size: Triton's, and the plain one."""
    channels = heads * width
    x, y = (torch.randn(1, rows, channels, device=DEVICE, dtype=DTYPE) for _ in range(2))
    wide = torch.randn(1, rows, 4 * channels, device=DEVICE, dtype=DTYPE)
    shift, scale = (torch.randn(2, channels, device=DEVICE, dtype=DTYPE) for _ in range(2))
    weight = torch.randn(width, device=DEVICE, dtype=DTYPE)
    turns = torch.randn(rows, width // 2, device=DEVICE)
    out = torch.empty(1, rows, heads, width, device=DEVICE, dtype=DTYPE)
    split, head = rows // 4, x.view(1, rows, heads, width)
    found = {}
    for need in (Need(True, False), Need(False, True)):
        kind = "e4m3" if need.small else "bf16"
        given = {"norm_modulate": (x, shift, scale, split, need), "gelu": (wide, need)}
        if need.small:
            given["feed"] = (x, need)
        for name, args in given.items():
            found[f"{name} {kind}"] = tuple(
                lambda of=of, name=name, args=args: getattr(of, name)(*args)
                for of in (TRITON, PLAIN)
            )
    for name, args in {
        "norm_rotate": (head, weight, turns.cos(), turns.sin(), out),
        "gate_residual": (x, y, scale * 0.01, split),
    }.items():
        found[name] = tuple(
            lambda of=of, name=name, args=args: getattr(of, name)(*args) for of in (TRITON, PLAIN)
        )
    return found  # type: ignore[return-value]


def milliseconds(run: Callable[[], object], rounds: int = 10) -> float:
    """The median of `rounds`."""
    with torch.inference_mode():
        for _ in range(WARM):
            run()
        return round(1000 * sorted(timed(run, DEVICE) for _ in range(rounds))[rounds // 2], 4)


def loop() -> dict[str, Any]:
    """Four steps under CUDA's own watch: any wait for the card is an error."""
    model = random_transformer({"zero_cond_t": True, "num_layers": 2}, DEVICE, DTYPE)
    given, tokens = Workload.of(model, AREA, references=1).inputs(model, DEVICE)
    scheduler = schedule.schedule(schedule.LIGHTNING, "lightning", 4, tokens.shape[1], DEVICE)
    best = attention.choose("auto", DEVICE, DTYPE)
    own = Own(model, best.attention, choice.choose("auto", DEVICE, DTYPE).ops)
    for watched in ("default", "error"):
        torch.cuda.set_sync_debug_mode(watched)
        denoise(own, scheduler, tokens, given, 1.0, Plan.full(4), lambda *_: None)
        scheduler.set_begin_index(0)
        scheduler._step_index = None
    torch.cuda.set_sync_debug_mode("default")
    return {"waits": 0}


@torch.inference_mode()
def trace() -> dict[str, Any]:
    """Milliseconds of each kernel in one block of the reference job, by recipe."""
    found = {}
    for name in ("fp8-rows", "bf16"):
        model = random_transformer({"zero_cond_t": True, "num_layers": 2}, DEVICE, DTYPE)
        precision.hold(model, precision.RECIPES[name])
        given, tokens = Workload.of(model, AREA, references=3).inputs(model, DEVICE)
        best = attention.choose("auto", DEVICE, DTYPE)
        own = Own(model, best.attention, choice.choose("auto", DEVICE, DTYPE).ops)
        velocity = own.prepare(given, torch.tensor([500.0], device=DEVICE), Plan.full(1))
        velocity(0, 0, tokens)
        kinds = [torch.profiler.ProfilerActivity.CUDA]
        with torch.profiler.profile(activities=kinds) as profile:
            velocity(0, 0, tokens)
            torch.cuda.synchronize()
        events = sorted(profile.key_averages(), key=lambda e: -e.device_time_total)
        found[name] = {e.key[:90]: [e.count, round(e.device_time_total / 1e3, 3)] for e in events}
    return found


def benched(*arguments: str) -> dict[str, Any]:
    """What `vellumd bench` says, in a process of its own."""
    command = [sys.executable, "-m", "vellumd.engine", "bench", "--random", *arguments]
    ran = subprocess.run(command, stdout=subprocess.PIPE, check=True)
    answer: dict[str, Any] = json.loads(ran.stdout)
    return answer


def side_by_side(*arguments: str) -> dict[str, Any]:
    """All methods' weights at once are 78 GB; where they do not fit, with fewer blocks."""
    try:
        return benched(*arguments)
    except subprocess.CalledProcessError:
        return benched(*arguments, "--layers", "48")


def sizes(quick: bool) -> dict[str, Any]:
    """All methods over references and megapixels; one block in five, which is told."""
    return {
        f"{references} of {size}": benched(
            "--references", str(references), "--megapixels", str(size), "--layers", "12",
            "--rounds", "3" if quick else "5",
        )
        for references in (1, 2, 3)
        for size in (0.5, 1, 2)
    }  # fmt: skip


def main() -> None:
    """Measure part after part."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.card")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--parts", default="")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    rounds = "3" if args.quick else "5"
    parts: dict[str, Callable[[], dict[str, Any]]] = {
        "kernels": kernels,
        "reference": lambda: side_by_side("--rounds", rounds),
        "1-reference": lambda: side_by_side("--rounds", rounds, "--references", "1"),
        "loop": loop,
        "sizes": lambda: sizes(args.quick),
        "trace": trace,
    }
    for name, part in parts.items():
        if args.parts and name not in args.parts.split(","):
            continue
        try:
            found = part()
        except Exception:  # noqa: BLE001 (the other parts are still wanted)
            found = {"error": traceback.format_exc()}
        (args.out / f"{name}.json").write_text(json.dumps(found, indent=1) + "\n")
        print(name, "error" if "error" in found else "done", flush=True)
        torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
