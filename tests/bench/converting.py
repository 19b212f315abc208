"""The artefact of the random model that all benches use: whichever comes first makes it."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vellumd import errors, model_card
from vellumd.artefact import MODULATION, TRANSFORMER
from vellumd.engine import convert, shards
from vellumd.weights.model import open_model

BLOCKS = 20
"""Of the 60, whose time is scaled for a figure beside the whole."""
POLL_S = 1.0
"""Seconds between two looks whether another bench, on another card, has finished it."""


def folder_of(model: Path) -> Path:
    """Where the artefacts of the model in `model` lie."""
    return model.with_name(f"{model.name}-artifacts")


def made(folder: Path, blocks: int = BLOCKS) -> dict[str, Any]:
    """Make the artefact that edits with the LoRA of the model in `folder` want, if it is missing.

    What it took, and what the time of `blocks` blocks comes to, scaled.
    """
    model = open_model(folder)
    fused = convert.Lora(next((folder / "loras").glob("*.safetensors")))
    job = convert.Conversion(model, model_card.read(str(folder)), [fused])
    target = folder_of(folder) / job.name
    if target.is_dir():
        return {"there": True}
    began, marks = time.perf_counter(), [(0.0, 0)]

    def beat(done: int, of: int) -> None:
        marks.append((time.perf_counter() - began, done))

    with watched_memory() as grown:
        alone = run(job, target, beat)
    seconds = time.perf_counter() - began
    if not alone:
        return {"there": True, "waited_s": round(seconds, 1)}
    of_blocks = scaled(job, marks, blocks)
    size = sum(file.stat().st_size for file in target.rglob("*") if file.is_file())
    return {
        "told_before": str(job.needs()),
        "seconds": round(seconds, 1),
        f"seconds_of_{blocks}_blocks_scaled": round(of_blocks, 1),
        "seconds_of_tenths": [tenth(marks, number) for number in range(1, 11)],
        "own_memory_gb": round(grown[0] / 1e9, 2),
        "artefact_gb": round(size / 1e9, 2),
    }


def scaled(job: convert.Conversion, marks: list[tuple[float, int]], blocks: int) -> float:
    """What the first `blocks` blocks took, scaled to all; modulation is written before them."""
    groups = job._groups()
    before = sum(shards.size_of(job._layout(groups[name])) for name in groups if name == MODULATION)
    each = shards.size_of(job._layout(groups[f"{TRANSFORMER}/block-00.safetensors"]))
    blocks = min(blocks, job.blocks)
    began, ended = (at_bytes(marks, size) for size in (before, before + blocks * each))
    return (ended - began) * job.blocks / blocks


def tenth(marks: list[tuple[float, int]], number: int) -> float:
    """Seconds until `number` tenths were written."""
    return round(at_bytes(marks, marks[-1][1] * number // 10), 1)


def at_bytes(marks: list[tuple[float, int]], size: int) -> float:
    """Seconds until `size` bytes were written."""
    return next((at for at, done in marks if done >= size), marks[-1][0])


def run(job: convert.Conversion, target: Path, beat: Any) -> bool:
    """Convert, or wait until another process has; whether it was this one."""
    alone = True
    while True:
        try:
            job.run(target, beat)
        except errors.ConfigError:
            if target.exists():
                raise
            alone = False
            time.sleep(POLL_S)
        else:
            return alone


@contextmanager
def watched_memory() -> Iterator[list[int]]:
    """The most that this process' own memory grew by, files left out; one number."""
    grown, over = [0], threading.Event()

    def own() -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))

    before = own()

    def watch() -> None:
        while not over.wait(0.01):
            grown[0] = max(grown[0], own() - before)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield grown
    finally:
        over.set()
        watcher.join()
