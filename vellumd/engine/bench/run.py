"""The command `python -m vellumd.engine bench`."""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import statistics
import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from vellumd import model_card
from vellumd.engine import faults, loading, memory, pipeline
from vellumd.engine.bench import measure
from vellumd.engine.bench.methods import AGAIN, COMPILED, DIFFUSERS, Method, Methods
from vellumd.engine.bench.workload import PICTURE, Workload, fitting, random_transformer
from vellumd.engine.report import PipeReport
from vellumd.engine.transformer import Own
from vellumd.engine.trial import refusal
from vellumd.errors import VellumError
from vellumd.images import sha256_of
from vellumd.models import ImageRef, ResolvedEdit
from vellumd.protocol import Init
from vellumd.settings import EngineSettings

OK, FAILED = 0, 1
FULL_SIZE: dict[str, Any] = {"zero_cond_t": True, "num_layers": 60}
"""The configuration of Qwen-Image-Edit-2511: diffusers' defaults but for the first."""
MEGAPIXEL = 1 << 20
PACKAGES = ("torch", "triton", "diffusers", "fa3-fwd")


Keep = Callable[[dict[str, Any]], None]
"""Told of all figures each time that there are more."""


def main(argv: Sequence[str]) -> int:
    """Measure, and print one JSON object; with `--out`, have it in a file as it grows."""
    parser = argparse.ArgumentParser(prog="python -m vellumd.engine bench")
    parser.add_argument(
        "--engine", type=EngineSettings.model_validate_json, default="{}", help="settings, JSON"
    )
    parser.add_argument("--random", action="store_true")
    parser.add_argument("--layers", type=int)
    parser.add_argument("--references", type=int, default=3)
    parser.add_argument("--megapixels", type=float)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--only", default="")
    parser.add_argument("--skip", default="")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args(argv)
    try:
        found = bench(args, partial(write, args.out) if args.out else nothing)
    except VellumError as error:
        tell(f"vellumd: {error.message} {error.remedy}")
        return FAILED
    except Exception as error:
        if not faults.is_memory(error):
            raise
        tell("vellumd: there is not enough memory; --layers takes fewer blocks")
        return FAILED
    print(json.dumps(found, indent=1))
    return OK


def write(out: Path, found: dict[str, Any]) -> None:
    """Have `found` in the file `out`, whole at any time."""
    new = out.with_name(f"{out.name}.new")
    new.write_text(json.dumps(found, indent=1) + "\n", "utf-8")
    new.replace(out)


def nothing(found: dict[str, Any]) -> None:
    """Keep no figures before all are there."""


def bench(args: argparse.Namespace, keep: Keep = nothing) -> dict[str, Any]:
    """The figures that `args` ask for."""
    device = loading.device_of("auto")
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    found: dict[str, Any] = {"machine": machine(device)}
    card = model_card.ModelCard(name="random") if args.random else model_card.of(args.engine)
    base, blocks = subject(args, device, dtype)
    area = round(args.megapixels * MEGAPIXEL) if args.megapixels else card.canvas_area
    workload = Workload.of(base, area, args.references)
    found["workload"] = {
        "model": card.name,
        "layers": [workload.layers, blocks],
        "references": args.references,
        "rows": workload.rows,
        "tflop": round(workload.flops() / 1e12, 4),
    }
    found["methods"] = compared(
        base, workload, device, args, lambda methods: keep({**found, "methods": methods})
    )
    del base
    memory.free()
    if not args.random:
        found["stages"] = stages(args, device)
    keep(found)
    return found


def subject(args: argparse.Namespace, device: torch.device, dtype: torch.dtype) -> tuple[Any, int]:
    """The transformer that is measured, and how many blocks the whole one has.

    Where there is no room for all methods over all blocks, some of random weights stand for them.
    """
    opened = None if args.random else model_card.opened(args.engine)
    config = FULL_SIZE if opened is None else opened.configs["transformer"]
    blocks = int(config["num_layers"])
    layers = args.layers or min(blocks, fitting(config, device))
    if opened is not None and layers >= blocks:
        return loading.load(opened, device, lambda *_: None).transformer, blocks
    return random_transformer({**config, "num_layers": layers}, device, dtype), blocks


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
    base: Any,
    workload: Workload,
    device: torch.device,
    args: argparse.Namespace,
    keep: Callable[[list[dict[str, Any]]], None] = lambda methods: None,
) -> list[dict[str, Any]]:
    """The figures of each method that `args` want, or why it has none.

    Those that keep keys and values come first and go before the others are made, to have
    room; they are told last. `keep` has all times as soon as they are taken, then memory and
    errors as they come.
    """
    again: list[dict[str, Any]] = []
    with torch.inference_mode():
        (diffusers,) = Methods(base, workload, device, lambda name: name == DIFFUSERS).all()
        exact = diffusers.prepare()()
    for reuses in (True, False):

        def wanted(name: str, reuses: bool = reuses) -> bool:
            return is_wanted(name, args) and name.endswith(AGAIN) == reuses

        made = Methods(base, workload, device, wanted)
        methods = list(made.all())
        seconds = measure.times(methods, args.rounds, device, tell)
        result = [timed(method, its) for method, its in zip(methods, seconds, strict=True)]
        result += ({"name": name, "failed": why} for name, why in made.refused.items())
        keep(result + again)
        for method, figures in zip(methods, result, strict=False):
            if "failed" not in figures:
                tell(f"memory and errors of {method.name}")
                compare = exact if method.name != DIFFUSERS and not reuses else None
                complete(figures, base, method, workload, compare)
                keep(result + again)
        if reuses:
            again = result
        del methods, made
        memory.free()
    return result + again


def is_wanted(name: str, args: argparse.Namespace) -> bool:
    """Whether the method `name` holds one of the texts of `only` and none of `skip`."""
    only, skip = args.only.split(";"), args.skip.split(";") if args.skip else []
    return any(text in name for text in only) and not any(text in name for text in skip)


def timed(method: Method, seconds: list[float] | str) -> dict[str, Any]:
    """What is told of one method's `seconds`, or why it has none."""
    if isinstance(seconds, str):
        return {"name": method.name, "failed": seconds}
    return measure.figures(method, seconds)


def complete(
    figures: dict[str, Any], base: Any, method: Method, workload: Workload, exact: Tensor | None
) -> None:
    """Add the method's memory to its `figures`, and its errors against `exact` if given."""

    def measured() -> None:
        made, held = measure.memory(method, base.img_in.weight.device)
        figures.update(held)
        if exact is not None:
            figures.update(errors(base, method, workload, made, exact))

    if why := refusal(measured):
        figures["failed"] = why


@torch.inference_mode()
def errors(
    base: Any, method: Method, workload: Workload, made: Tensor, exact: Tensor
) -> dict[str, Any]:
    """The error of `made`, and of the blocks: the median, and the one that errs most.

    Blocks that torch compiled have none of their own: fed with another forward's tensors,
    they would be compiled anew, for minutes.
    """
    found: dict[str, Any] = {"error": rounded(measure.error(made, exact))}
    if isinstance(method.forward, Own) and not method.name.endswith(COMPILED):
        blocks = measure.block_errors(base, method, workload, exact.device)
        found["block_error"] = rounded(statistics.median(blocks))
        found["worst_block"] = [blocks.index(max(blocks)), rounded(max(blocks))]
    return found


def rounded(number: float) -> float:
    """To three digits."""
    return float(f"{number:.3g}")


def stages(args: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """Seconds by phase of a guided edit of 8 steps: the first, and one that is known."""
    tell("edits")
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        settings = args.engine.model_dump(mode="json")
        engine = pipeline.create(Init(engine="", settings=settings, spool=home, cache=home))
        capabilities = engine.load(PipeReport(lambda frame: None, preview=lambda: False))
        file = home / "picture.png"
        Image.effect_noise(PICTURE, 90).convert("RGB").save(file)
        ref = ImageRef(sha256=sha256_of(file), width=PICTURE[0], height=PICTURE[1])
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
    return found


def tell(what: str) -> None:
    """Say on standard error what is going on."""
    print(what, file=sys.stderr, flush=True)
