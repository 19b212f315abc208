"""`vellumd bench`: how fast the transformer is on this machine, by each method that runs here."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from typing import Any

from vellumd.cli.main import FAILED, OK, load_settings

COLUMNS = ("method", "class", "at once", "s a forward", "least", "most", "TFLOP/s", "weights GB",
           "activations GB", "error", "a block", "of the first")  # fmt: skip


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What to measure, and how to tell it."""
    parser.add_argument(
        "--random", action="store_true",
        help="random weights of Qwen-Image-Edit-2511's size in place of engine.model",
    )  # fmt: skip
    parser.add_argument(
        "--layers", type=int, metavar="N",
        help="so many blocks of random weights; else as many as fit, the model's if all do",
    )  # fmt: skip
    parser.add_argument("--references", type=int, default=3, help="pictures that are edited")
    parser.add_argument("--megapixels", type=float, help="2^20 pixels of each picture")
    parser.add_argument("--rounds", type=int, default=10, help="forwards that are timed of each")
    parser.add_argument(
        "--only", default="", help="methods whose name holds this; several with ; between"
    )
    parser.add_argument(
        "--skip", default="", help="leave out those whose name holds this, likewise"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object instead of a table")


def run(args: argparse.Namespace) -> int:
    """Measure in an engine process of its own; the daemon's should be stopped or unloaded."""
    engine = load_settings(args).settings.engine
    command = [
        sys.executable, "-m", "vellumd.engine", "bench", "--engine", engine.model_dump_json(),
        "--references", str(args.references), "--rounds", str(args.rounds),
        "--only", args.only, "--skip", args.skip,
        *(["--layers", str(args.layers)] if args.layers else []),
        *(["--megapixels", str(args.megapixels)] if args.megapixels else []),
        *(["--random"] * args.random),
    ]  # fmt: skip
    measured = subprocess.run(command, stdout=subprocess.PIPE, check=False)
    if measured.returncode:
        return FAILED
    print(measured.stdout.decode().rstrip() if args.json else table(json.loads(measured.stdout)))
    return OK


def table(found: dict[str, Any]) -> str:
    """The measured figures for people to read."""
    machine, workload = found["machine"], found["workload"]
    versions = ", ".join(
        f"{name} {machine[name]}" for name in ("torch", "triton", "fa3-fwd") if machine[name]
    )
    lines = [
        f"{machine['device']}, {versions}",
        (
            f"{workload['model']}, {workload['references']} references: {workload['rows']} rows, "
            f"{workload['tflop']} TFLOP a forward"
        ),
        "Of two forwards at once, as guided edits run ours, one's share of the time is told.",
        *_part(*workload["layers"]),
        "",
    ]
    baseline = next((one["forward_s"] for one in found["methods"] if "forward_s" in one), 0)
    rows = [COLUMNS, *(_row(method, baseline) for method in found["methods"])]
    widths = [max(len(row[column]) for row in rows) for column in range(len(COLUMNS))]
    lines += [
        "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows
    ]
    return "\n".join([*lines, *_stages(found.get("stages", {}))])


def _part(layers: int, blocks: int) -> list[str]:
    """What a forward of `layers` is of one of `blocks`, where it is a part."""
    if layers == blocks:
        return []
    times = f"{blocks / layers:.1f} times as long"
    return [f"{layers} of {blocks} blocks, with random weights: a whole forward takes {times}."]


def _row(method: dict[str, Any], baseline: float) -> tuple[str, ...]:
    if "failed" in method:
        return method["name"], "", "", method["failed"][:60], *[""] * (len(COLUMNS) - 4)
    figures = (
        "prompts", "forward_s", "least_s", "most_s", "tflops", "weights_gb", "activations_gb",
        "error", "block_error",
    )  # fmt: skip
    told = (str(method.get(name, "")) for name in figures)
    return method["name"], method["exactness"], *told, f"{baseline / method['forward_s']:.2f} x"


def _stages(stages: dict[str, Any]) -> list[str]:
    """Seconds by phase of whole edits, a line each."""
    lines = []
    for name, value in stages.items():
        if isinstance(value, dict):
            phases = ", ".join(f"{phase} {seconds:.3f}" for phase, seconds in value.items())
            lines.append(f"edit ({name}): {sum(value.values()):.3f} s: {phases}")
    return ["", *lines] if lines else []
