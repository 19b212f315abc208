"""How soon weights that wait in the host's memory are there, pinned: three ways, side by side.

    python -m tests.bench.pinning --folder /dev/shm --out FILE
    python -m tests.bench.pinning --tiny --folder /tmp          # does the script run?

Reads blocks of a file from the page cache to where they stay, by as many threads as the engine
has: into memory that torch pins, into memory that torch registers, and into the engine's. Each in
a process of its own. On a card it also says how fast the card copies from it, whether what is
pinned is really given back, and whether it waits for a copy that runs while it is let go of.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tests.bench import apart
from tests.bench.record import Record
from vellumd import platform
from vellumd.engine import pinned
from vellumd.engine.reading import THREADS, Piece, Span, read_span

BLOCK, BLOCKS = 246 << 20, 24
"""A transformer block's bytes in FP8 beside tables, and how many: 6.2 GB."""
REGISTERS = "pinned_use_cuda_host_register:True,pinned_num_register_threads:8"
WAYS = {"torch pins": "", "torch registers": REGISTERS, "ours": ""}
"""What torch's allocator is told."""


def main() -> None:
    """Measure every way and write it down; or one, as a child."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path("/dev/shm"))
    parser.add_argument("--out", type=Path)
    parser.add_argument("--tiny", action="store_true", help="small blocks, on any machine")
    parser.add_argument("--way", choices=WAYS, help="measure this one in this process")
    args = parser.parse_args()
    size = 4 << 20 if args.tiny else BLOCK
    file = args.folder / "blocks-for-pinning"
    if args.way:
        print(json.dumps(measure(args.way, file, size)))
        return
    record = Record(args.out)
    try:
        build(file, size)
        for way, conf in WAYS.items():
            os.environ["PYTORCH_CUDA_ALLOC_CONF"] = conf
            small = ["--tiny"] if args.tiny else []
            record[way] = apart.told(
                "tests.bench.pinning", "--way", way, "--folder", args.folder, *small
            )
    finally:
        file.unlink(missing_ok=True)


def build(file: Path, size: int) -> None:
    """A file of blocks, each of them its number's bytes."""
    with file.open("wb") as opened:
        for number in range(BLOCKS):
            opened.write(bytes([number + 1]) * size)


def measure(way: str, file: Path, size: int) -> dict[str, Any]:
    """Gigabytes a second until all blocks are there, and from there to the card."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    target = torch.zeros(size, dtype=torch.uint8, device=device)
    before, began = taken_gb(), time.perf_counter()
    with ThreadPoolExecutor(THREADS) as threads:
        blocks = list(threads.map(partial(block, way, file, size, device), range(BLOCKS)))
    seconds = time.perf_counter() - began
    total = BLOCKS * size / 1e9
    found: dict[str, Any] = {"gb_s": round(total / seconds, 2)}
    if device.type == "cuda":
        torch.cuda.synchronize()
        began = time.perf_counter()
        for memory in blocks:
            target.copy_(memory, non_blocking=True)
        found["asked_s"] = round(time.perf_counter() - began, 4)
        torch.cuda.synchronize()
        found["to_card_gb_s"] = round(total / (time.perf_counter() - began), 1)
        target.copy_(blocks[2], non_blocking=True)
    else:
        target.copy_(blocks[2])
    held = taken_gb() - before
    began = time.perf_counter()
    blocks.clear()  # while the copy runs
    found["let_go_s"] = round(time.perf_counter() - began, 3)
    found["gb_kept_of_gb"] = [round(taken_gb() - before, 1), round(held, 1), round(total, 1)]
    found["last_copy_right"] = bool((target == 3).all())
    return found


def block(way: str, file: Path, size: int, device: torch.device, number: int) -> Tensor:
    """One block, read to where it stays."""

    def read(memory: Tensor) -> None:
        read_span(Span(file, number * size, (Piece(0, 0, 0, size),)), [memory])

    if way == "ours":
        return pinned.on_host(size, device, read)
    memory = torch.empty(size, dtype=torch.uint8, pin_memory=device.type == "cuda")
    read(memory)
    return memory


def taken_gb() -> float:
    """Memory of the machine that is in use, files aside: pinned pages are the driver's, too."""
    host = platform.memory()
    return (host.total - host.available) / 1e9


if __name__ == "__main__":
    main()
