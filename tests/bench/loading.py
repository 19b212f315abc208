"""How soon a transformer's weights are on a device: three ways, side by side.

    python -m tests.bench.loading --folder /dev/shm --out FILE

Makes a file of random FP8 at the real model's size, 20.4 GB, and loads it from the page
cache as the predecessor did (mmap, assign, `.to`), as safetensors does, and as the engine
does. Each in a process of its own, in turns, so that pinning is paid every time. `--sweep`
tries other numbers of threads and sizes of spans.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import accelerate
import diffusers
import torch
from safetensors.torch import load_file
from torch import Tensor

from tests.bench import record
from tests.bench.apart import told
from tests.weights import files
from vellumd.engine import reading, weights
from vellumd.engine.reading import Reader
from vellumd.weights import checkpoint, shapes

PIECE = 64 << 20
"""Bytes that are written at a time."""


@dataclass(frozen=True)
class Case:
    """What is loaded, and where to."""

    file: Path
    config: dict[str, Any]
    device: torch.device
    threads: int = reading.THREADS
    span: int = reading.SPAN


def empty(case: Case) -> torch.nn.Module:
    """The transformer without weights."""
    with accelerate.init_empty_weights():
        model: torch.nn.Module = diffusers.QwenImageTransformer2DModel.from_config(case.config)  # type: ignore[no-untyped-call]
    return model


def predecessor(case: Case, model: torch.nn.Module) -> None:
    """mmap, assign, move: every byte goes through memory that is not pinned."""
    model.load_state_dict(load_file(case.file), assign=True)
    model.to(case.device)


def straight(case: Case, model: torch.nn.Module) -> None:
    """safetensors' own way to a device."""
    model.load_state_dict(load_file(case.file, device=str(case.device)), assign=True)


def ours(case: Case, model: torch.nn.Module) -> None:
    """The engine's reader, headers included."""
    found = checkpoint.of("transformer", [case.file])
    found.check(shapes.transformer(case.config))
    with Reader(case.device, threads=case.threads, span=case.span) as reader:
        weights.fill(model, found, reader, lambda stored: {stored.stored.name: stored.weight})


WAYS: dict[str, Callable[[Case, torch.nn.Module], None]] = {
    "predecessor": predecessor, "safetensors": straight, "ours": ours,
}  # fmt: skip


def measure(way: str, case: Case) -> dict[str, Any]:
    """Seconds until the last byte is on the device, and a sum that all ways share."""
    model = empty(case)
    if case.device.type == "cuda":
        torch.zeros(1, device=case.device)
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    began = time.perf_counter()
    WAYS[way](case, model)
    if case.device.type == "cuda":
        torch.cuda.synchronize()
    seconds = time.perf_counter() - began
    peak = torch.cuda.max_memory_allocated() / 1e9 if case.device.type == "cuda" else 0.0
    return {"seconds": seconds, "peak_gb": round(peak, 2), "sum": checksum(model)}


def checksum(model: torch.nn.Module) -> int:
    """A number that each byte of the weights has a part in, and its place among others."""

    def of(tensor: Tensor) -> int:
        found = tensor.detach().contiguous().view(-1).view(torch.uint8).to(torch.int64)
        return int((found * (torch.arange(len(found), device=found.device) % 251 + 1)).sum())

    return sum(number * of(t) for number, t in enumerate(model.parameters(), 1)) % (1 << 61)


def build(file: Path, config: dict[str, Any]) -> None:
    """A transformer's file, all of it FP8, of random bytes without NaNs."""
    tensors: dict[str, files.Entry] = {
        name: ("F8_E4M3", shape) for name, shape in shapes.transformer(config).items()
    }
    head = files.packed(tensors)
    size = sum(checkpoint.header.Place(file, 0, *entry).count for entry in tensors.values())  # type: ignore[arg-type]
    piece = bytes(byte & 0x7E for byte in os.urandom(1 << 20)) * (PIECE >> 20)
    with file.open("wb") as opened:
        opened.write(head)
        for begin in range(0, size, PIECE):
            opened.write(piece[: min(PIECE, size - begin)])


def apart(way: str, case: Case) -> dict[str, Any]:
    """`measure` in a process of its own, with the seconds that its imports took."""
    return told(
        "tests.bench.loading", "--way", way, "--file", case.file,
        "--config", json.dumps(case.config), "--device", case.device,
        "--threads", case.threads, "--span", case.span,
    )  # fmt: skip


def compare(
    case: Case, rounds: int, run: Callable[[str, Case], dict[str, Any]] = apart
) -> dict[str, Any]:
    """Every way in turns; medians, rates, and what each is of the predecessor's."""
    found: dict[str, list[dict[str, Any]]] = {way: [] for way in WAYS}
    for _ in range(rounds):
        for way in WAYS:
            found[way].append(run(way, case))
            print(f"{way:12} {found[way][-1]['seconds']:.2f} s", flush=True)
    sums = {one["sum"] for several in found.values() for one in several}
    if len(sums) != 1:
        raise RuntimeError("the ways do not load the same")
    size = case.file.stat().st_size / 1e9
    medians = {way: statistics.median(one["seconds"] for one in found[way]) for way in WAYS}
    figures: dict[str, Any] = {"file_gb": round(size, 2), "rounds": rounds}
    for way, seconds in medians.items():
        figures[way] = {
            "s": round(seconds, 3),
            "all_s": [round(one["seconds"], 3) for one in found[way]],
            "gb_s": round(size / seconds, 1),
            "of_predecessor": round(seconds / medians["predecessor"], 3),
            "peak_gb": max(one["peak_gb"] for one in found[way]),
            "imports_s": round(statistics.median(one.get("imports_s", 0) for one in found[way]), 2),
        }
    return figures


def sweep(case: Case) -> dict[str, float]:
    """Ours with other threads and spans, gigabytes a second."""
    size = case.file.stat().st_size / 1e9
    rates = {}
    for threads in (2, 4, 6, 8):
        for span in (8 << 20, 32 << 20, 64 << 20):
            other = Case(case.file, case.config, case.device, threads, span)
            seconds = min(apart("ours", other)["seconds"] for _ in range(2))
            rates[f"{threads} threads, {span >> 20} MiB"] = round(size / seconds, 1)
    return rates


def main(arguments: Sequence[str] | None = None) -> None:
    """Build, compare, write down; or measure one way, as a child."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path("/dev/shm"))
    parser.add_argument("--out", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tiny", action="store_true", help="a tiny file, on any machine")
    parser.add_argument("--sweep", action="store_true")
    parser.add_argument("--config", type=json.loads, default={}, help="of the transformer, JSON")
    parser.add_argument("--device", default="cuda:0" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--way", choices=WAYS, help="measure this one in this process")
    parser.add_argument("--file", type=Path)
    parser.add_argument("--threads", type=int, default=reading.THREADS)
    parser.add_argument("--span", type=int, default=reading.SPAN)
    args = parser.parse_args(arguments)
    device = torch.device(args.device)
    if args.way:
        case = Case(args.file, args.config, device, args.threads, args.span)
        print(json.dumps({**measure(args.way, case), "imports_s": IMPORTS_S}))
        return
    if args.tiny:
        args.config = {**files.CONFIG, "axes_dims_rope": [2, 2, 4]}
    case = Case(args.folder / "transformer-for-loading.safetensors", args.config, device)
    try:
        build(case.file, case.config)
        figures = compare(case, args.rounds)
        if args.sweep:
            figures["sweep_gb_s"] = sweep(case)
    finally:
        case.file.unlink(missing_ok=True)
    record.keep(figures, args.out)


def _age() -> float:
    """Seconds since this process was started, by the system's clock."""
    try:
        ticks = float(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
        return time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
    except (OSError, AttributeError, ValueError):
        return 0.0


IMPORTS_S = round(_age(), 2)
"""What starting Python and importing torch and diffusers took."""

if __name__ == "__main__":
    main()
