"""Whole edits at the real model's size on a card, with random weights: speed and memory only.

    python -m tests.bench.full_size --folder /dev/shm/model --out FILE
    python -m tests.bench.full_size --tiny --folder /tmp/demo      # does the script run?

Makes 58 GB of random bfloat16 weights in the layout of Qwen-Image-Edit-2511 unless they are
there, and of them the artefact that `vellumd convert` makes; loads that through the engine's own
code and times edits phase by phase: each tier, few steps without guidance, many steps in
bfloat16, and in the same run the predecessor's method. Last, for comparison, the model itself
with the LoRA beside its weights. Random weights prove nothing about pictures.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import torch

from tests.bench import converting, edits, predecessor, random_model, stages
from tests.bench.edits import CUDA, Wanted
from tests.bench.record import Record
from vellumd.engine import memory

TIERS = "standard", "swift", "turbo"


def main() -> None:
    """Build, load, time, write down."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--tiny", action="store_true", help="the demo, on any machine")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    if args.tiny:
        torch.set_num_threads(1)
    measure(args.folder, Record(args.out), tiny=args.tiny)


def measure(folder: Path, record: Record, *, tiny: bool) -> None:
    """Put everything into `record`, what matters most first."""
    began = time.perf_counter()
    random_model.there(folder, tiny=tiny)
    record["built_s"] = round(time.perf_counter() - began, 1)
    record["convert"] = converting.made(folder)
    ready = {"artifact_dir": str(converting.folder_of(folder))}
    if tiny:
        ready["recipe"] = "fp8-weights"  # on a CPU the demo would do without an artefact
    engine = load("first load", folder, record, **ready)
    short, many = (1, 1) if tiny else (4, 50)
    for tier in TIERS:
        record[tier] = edits.timed(engine, folder, Wanted(tier=tier, tiny=tiny))
    record["predecessor"] = before(engine, folder, tiny=tiny)
    for tier in TIERS:
        record[f"{tier} against predecessor"] = round(
            record["predecessor"]["edit_s"] / record[tier]["edit_s"], 2
        )
    engine = load("second load", folder, record, **ready)
    name = f"1 reference, {short} steps, no guidance"
    record[name] = edits.timed(engine, folder, Wanted(1, short, 1.0, tiny=tiny))
    for tier in TIERS:
        wanted = Wanted(1, tier=tier, tiny=tiny)
        record[f"1 reference, {tier}"] = edits.timed(engine, folder, wanted)
    assert engine._model is not None
    record["stages"] = stages.measure(engine._model, folder)
    engine.unload()
    engine = load("reference load", folder, record, tier="reference")
    wanted = Wanted(1, many, 4.0, "reference", lightning=False, tiny=tiny)
    files = edits.pictures(folder, "new", 1)
    record[f"1 reference, {many} steps, bf16"] = edits.once(engine, files, wanted, edits.PROMPT)
    engine.unload()
    ready["artifact_dir"] = str(folder / "no artefacts")
    engine = load("load without artefact", folder, record, **ready)
    record["standard, LoRA beside"] = edits.timed(engine, folder, Wanted(tiny=tiny))
    engine.unload()


def load(name: str, folder: Path, record: Record, **settings: Any) -> Any:
    """An engine; how long it took, with which recipe and plan."""
    engine, told = edits.loaded(folder, **settings)
    record[name] = {
        "load_s": told.load_s,
        "recipe": told.recipe,
        "plan": told.memory_plan,
        "notes": told.notes,
        "loaded_gb": round(torch.cuda.memory_allocated() / 1e9, 2) if CUDA else None,
    }
    return engine


def before(engine: Any, folder: Path, *, tiny: bool) -> dict[str, Any]:
    """The predecessor's method on the first edit; `engine` makes room for it."""
    engine.unload()
    made = predecessor.pipeline(folder, tiny=tiny)
    files = edits.pictures(folder, "new", 3)
    predecessor.edit(made, files, Wanted(steps=2, tiny=tiny))
    found = predecessor.edit(made, files, Wanted(tiny=tiny))
    del made
    memory.free()
    return found


if __name__ == "__main__":
    main()
