"""The command `python -m vellumd.engine bench`."""

from __future__ import annotations

import argparse
import gc
import importlib.metadata
import json
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from vellumd import model_card
from vellumd.engine import loading, memory, pipeline
from vellumd.engine.bench import measure
from vellumd.engine.bench.methods import DIFFUSERS, Method, methods
from vellumd.engine.bench.workload import PICTURE, Workload, random_transformer
from vellumd.engine.report import PipeReport
from vellumd.engine.transformer import Own
from vellumd.models import ImageRef, ResolvedEdit
from vellumd.protocol import Init

FULL_SIZE: dict[str, Any] = {"zero_cond_t": True}
"""The configuration of Qwen-Image-Edit-2511: diffusers' defaults but for this."""
PACKAGES = ("torch", "triton", "diffusers", "fa3-fwd")


def main(argv: Sequence[str]) -> None:
    """Measure, and print one JSON object."""
    parser = argparse.ArgumentParser(prog="python -m vellumd.engine bench")
    parser.add_argument("--model", default="demo")
    parser.add_argument("--random", action="store_true")
    parser.add_argument("--layers", type=int, default=60)
    parser.add_argument("--references", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--only", default="")
    args = parser.parse_args(argv)
    print(json.dumps(bench(args), indent=1))


def bench(args: argparse.Namespace) -> dict[str, Any]:
    """The figures that `args` ask for."""
    device = loading.device_of("auto")
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    found: dict[str, Any] = {"machine": machine(device)}
    if args.random:
        card = model_card.ModelCard(name=f"random, {args.layers} blocks")
        base = random_transformer({**FULL_SIZE, "num_layers": args.layers}, device, dtype)
    else:
        card = model_card.read(args.model)
        folder = model_card.folder(args.model)
        base = loading.load(folder, device, lambda *_: None).transformer
    workload = Workload.of(base, card.canvas_area, args.references)
    found["workload"] = {
        "model": card.name,
        "references": args.references,
        "rows": workload.rows,
        "tflop": round(workload.flops() / 1e12, 4),
    }
    found["methods"] = compared(base, workload, device, args)
    del base
    memory.free()
    if not args.random:
        found["stages"] = stages(args, device)
    return found


def machine(device: torch.device) -> dict[str, Any]:
    """Where the figures come from."""
    found: dict[str, Any] = {"device": device.type, "threads": torch.get_num_threads()}
    if device.type == "cuda":
        found["device"] = torch.cuda.get_device_name(device)
        found["memory_gb"] = round(torch.cuda.get_device_properties(device).total_memory / 1e9, 1)
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = None
    return found


def compared(
    base: Any, workload: Workload, device: torch.device, args: argparse.Namespace
) -> list[dict[str, Any]]:
    """The figures of each method whose name holds `args.only`."""
    with torch.inference_mode():
        every = list(methods(base, workload, device))
        taking_part = [method for method in every if args.only in method.name]
        exact = next(method for method in every if method.name == DIFFUSERS).run()
    seconds = measure.times(taking_part, args.rounds, device, tell)
    result = []
    for method, its in zip(taking_part, seconds, strict=True):
        tell(f"memory and errors of {method.name}")
        figures = measure.figures(method, its) | measure.memory(method, device)
        if method.name != DIFFUSERS and not method.plan.reuses:
            with torch.inference_mode():
                figures["error"] = float(f"{measure.error(method.run(), exact):.3g}")
        if isinstance(method.forward, Own) and not method.plan.reuses:
            figures |= worst(base, method, workload, device)
        result.append(figures)
    return result


def worst(base: Any, method: Method, workload: Workload, device: torch.device) -> dict[str, Any]:
    """The block that errs most, and the median."""
    errors = measure.block_errors(base, method, workload, device)
    return {
        "block_error": float(f"{statistics.median(errors):.3g}"),
        "worst_block": [errors.index(max(errors)), float(f"{max(errors):.3g}")],
    }


def stages(args: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """Seconds by phase of a guided edit of 8 steps: the first, and one that is known."""
    tell("edits")
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        settings = {"model": args.model}
        engine = pipeline.create(Init(engine="", settings=settings, spool=home, cache=home))
        capabilities = engine.load(PipeReport(lambda frame: None, preview=lambda: False))
        file = home / "picture.png"
        Image.effect_noise(PICTURE, 90).convert("RGB").save(file)
        ref = ImageRef(sha256="0" * 64, width=PICTURE[0], height=PICTURE[1])
        found: dict[str, Any] = {"load_s": capabilities.load_s, "recipe": capabilities.recipe}
        for name, prompt in (("warm-up", "one"), ("new", "two"), ("known", "two")):
            edit = ResolvedEdit(
                model="bench", prompt=prompt, images=(ref,) * max(1, args.references), steps=8,
                true_cfg_scale=3.0, seed=1,
            )  # fmt: skip
            report = PipeReport(lambda frame: None, preview=lambda: False)
            for _ in engine.edit(edit, [file] * len(edit.images), report, lambda: False):
                pass
            found[name] = report.timings()
        engine.unload()
        gc.collect()
    return found


def tell(what: str) -> None:
    """Say on standard error what is going on."""
    print(what, file=sys.stderr, flush=True)
