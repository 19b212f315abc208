"""Budgets on a card: peak memory and seconds of every plan against the resident one's.

    python -m tests.bench.memory --folder /dev/shm/model --out FILE
    python -m tests.bench.memory --tiny --folder /tmp/demo      # does the script run?

Needs 58 GB for the random model (made if it is not there), 28 GB for an artefact of it, and
35 GB of the host's memory for streamed weights. One after the other: ours resident, then within
each of the budgets; two cards share them with `--budgets 18,12,8` and `--budgets 24,16,6,12+8`.
The result within a budget must be the resident one's to the bit. Before, converts unless the
artefact is there, and says what `--blocks` of the 60 took, scaled, with the memory that it
really took. The predecessor's method: `tests.bench.full_size`.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch

from tests.bench import budgets, converting, edits, random_model
from tests.bench.edits import CUDA, Wanted
from tests.bench.record import Record
from vellumd.engine import memory

BUDGETS = "18", "12", "8", "24", "16", "6", "12+8"
"""Gigabytes of the card, and of the host after a plus; those that tell most first."""
REFERENCES = 3, 1


def main() -> None:
    """Measure and write down."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--tiny", action="store_true", help="the demo, on any machine")
    parser.add_argument("--blocks", type=int, default=converting.BLOCKS)
    parser.add_argument(
        "--budgets", type=budgets.listed, default=BUDGETS,
        help=f"gigabytes, by default {','.join(BUDGETS)}; 12+8: 12, and 8 of the host's",
    )  # fmt: skip
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    if args.tiny:
        torch.set_num_threads(1)
    folder = random_model.there(args.folder, tiny=args.tiny)
    bench, record = Bench(folder, tiny=args.tiny), Record(args.out)
    record["convert"] = converting.made(folder, args.blocks)
    record["resident"] = resident = bench.ours()
    for budget in args.budgets:
        card, _, host = budget.partition("+")
        name = f"{card} GB, {host} GB of the host" if host else f"{card} GB"
        found = bench.ours(**budgets.limits(budget, tiny=args.tiny))
        record[name] = compared(found, resident)


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

    def ours(self, **within: float) -> dict[str, Any]:
        """Load within the budgets, then edit with each number of references."""
        recipe = {"recipe": "fp8-weights"} if self.tiny else {}
        found: dict[str, Any] = {"edits": {}}
        engine = None
        try:
            engine, told = edits.loaded(
                self.folder,
                artifact_dir=str(converting.folder_of(self.folder)),
                **recipe,
                **within,
            )
            found |= {"plan": told.memory_plan, "recipe": told.recipe, "load_s": told.load_s}
            for count in REFERENCES:
                wanted = Wanted(count, steps=2 if self.tiny else 8, tiny=self.tiny)
                found["edits"][f"{count} references"] = edits.timed(
                    engine, self.folder, wanted, again=1
                )
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


if __name__ == "__main__":
    main()
