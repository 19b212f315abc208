"""Budgets on a card: peak memory and seconds of every plan against the resident one's.

    python -m tests.bench.memory --folder /dev/shm/model --out FILE
    python -m tests.bench.memory --tiny --folder /tmp/demo      # does the script run?

Needs 58 GB for the random model (made if it is not there), 28 GB for an artefact of it, and
35 GB of the host's memory for streamed weights. One after the other: ours resident,
within 24, 18, 16, 12, 8 and 6 GB, and within 8 GB of the host's memory. The result within a
budget must be the resident one's to the bit. Before, converts and says what `--blocks` of the
60 took, scaled, with the memory that it really took. The predecessor's method:
`tests.bench.full_size`.
"""

from __future__ import annotations

import argparse
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from tests.bench import edits, random_model
from tests.bench.edits import CUDA, Wanted
from tests.bench.record import Record
from vellumd import model_card
from vellumd.engine import convert, memory
from vellumd.weights.model import open_model

BUDGETS = 18, 12, 8, 24, 16, 6
"""Gigabytes, those that tell most first."""
REFERENCES = 3, 1


def main() -> None:
    """Measure and write down."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--tiny", action="store_true", help="the demo, on any machine")
    parser.add_argument("--blocks", type=int, default=20)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    if args.tiny:
        torch.set_num_threads(1)
    folder = random_model.there(args.folder, tiny=args.tiny)
    bench, record = Bench(folder, tiny=args.tiny), Record(args.out)
    record["convert"] = bench.convert(args.blocks)
    record["resident"] = resident = bench.ours()
    for budget in BUDGETS:
        found = bench.ours(vram_budget_gb=0.001 if args.tiny else budget)
        record[f"{budget} GB"] = compared(found, resident)
    found = bench.ours(vram_budget_gb=0.001 if args.tiny else 12, ram_budget_gb=8)
    record["12 GB, 8 GB of the host"] = compared(found, resident)


def compared(found: dict[str, Any], resident: dict[str, Any]) -> dict[str, Any]:
    """`found` against the resident run: the time, and whether it is the same picture."""
    for name, edit in found.get("edits", {}).items():
        other = resident.get("edits", {}).get(name)
        if other:
            edit["of_resident"] = round(edit["edit_s"] / other["edit_s"], 3)
            edit["same"] = edit["sha256"] == other["sha256"]
    return found


class Bench:
    """One model and its artefacts."""

    def __init__(self, folder: Path, *, tiny: bool) -> None:
        self.folder = folder
        self.tiny = tiny
        self.artefacts = folder.with_name(f"{folder.name}-artifacts")
        self.lora = convert.Lora(next((folder / "loras").glob("*.safetensors")))

    def convert(self, blocks: int) -> dict[str, Any]:
        """Make the artefact that the edits want; the time of `blocks` blocks, scaled."""
        model = open_model(self.folder)
        card = model_card.read(str(self.folder))
        job = convert.Conversion(model, card, [self.lora])
        target = self.artefacts / job.name
        began, marks = time.perf_counter(), [(0.0, 0)]

        def beat(done: int, of: int) -> None:
            marks.append((time.perf_counter() - began, done))

        with watched_memory() as grown:
            job.run(target, beat)
        seconds = time.perf_counter() - began
        number = model.configs["transformer"]["num_layers"]
        share = next((at for at, done in marks if done >= marks[-1][1] * blocks / number), seconds)
        return {
            "told_before": str(job.needs()),
            "seconds": round(seconds, 1),
            f"seconds_of_{blocks}_blocks_scaled": round(share * number / blocks, 1),
            "own_memory_gb": round(grown[0] / 1e9, 2),
            "artefact_gb": round(
                sum(f.stat().st_size for f in target.rglob("*") if f.is_file()) / 1e9, 2
            ),
        }

    def ours(self, **budgets: float) -> dict[str, Any]:
        """Load within the budgets, then edit with each number of references."""
        recipe = {"recipe": "fp8-weights"} if self.tiny else {}
        found: dict[str, Any] = {"edits": {}}
        engine = None
        try:
            engine, told = edits.loaded(
                self.folder, artifact_dir=str(self.artefacts), **recipe, **budgets
            )
            found |= {"plan": told.memory_plan, "recipe": told.recipe, "load_s": told.load_s}
            for count in REFERENCES:
                wanted = Wanted(count, steps=2 if self.tiny else 8, tiny=self.tiny)
                found["edits"][f"{count} references"] = edits.timed(engine, self.folder, wanted)
        except Exception as error:  # noqa: BLE001 (the other budgets are still wanted)
            found["error"] = f"{type(error).__name__}: {error}"[:500]
        if engine is not None:
            engine.unload()
        del engine
        reset()
        return found


def reset() -> None:
    """Nothing of the run before is left."""
    memory.free()
    if CUDA:
        torch.cuda.set_per_process_memory_fraction(1.0)


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


if __name__ == "__main__":
    main()
