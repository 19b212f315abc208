"""How soon an engine is ready: by what lies on the disk, and by how much memory there is.

    python -m tests.bench.loads --folder /dev/shm/model --out FILE
    python -m tests.bench.loads --tiny --folder /tmp/demo      # does the script run?

Needs what `tests.bench.memory` needs. Each load is in a process of its own, as a start of the
daemon is; imports are told apart. Then the engine makes a small edit: what lies elsewhere must
give the picture of the resident engine, to the bit.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

from tests.bench import apart, budgets
from tests.bench.record import Record

BUDGETS = {
    "an artefact": ("first", "none", "31.5", "24", "12", "6", "12+8"),
    "no artefact": ("none", "24", "12"),
}
"""Gigabytes of the card, and of the host after a plus. `first`: without one, and before Triton
has compiled or the engine timed anything."""


def main() -> None:
    """Load in every way and write it down; or in one, as a child."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--tiny", action="store_true", help="the demo, on any machine")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--way", nargs=2, help="load in this one in this process")
    parser.add_argument("--cache", type=Path, help="where that keeps what it timed")
    args = parser.parse_args()
    if args.way:
        print(json.dumps(measure(args.folder, *args.way, args.cache, tiny=args.tiny)))
        return
    from tests.bench import converting, random_model

    record = Record(args.out)
    converting.made(random_model.there(args.folder, tiny=args.tiny))
    small = ["--tiny"] if args.tiny else []
    with tempfile.TemporaryDirectory() as cache:
        os.environ["TRITON_CACHE_DIR"] = cache
        given = "--folder", args.folder, "--cache", cache, *small
        for files, within in BUDGETS.items():
            resident = None
            for budget in within:
                found = apart.told("tests.bench.loads", "--way", files, budget, *given)
                resident = resident or found["sha256"]
                record[f"{files}, {budget}"] = found | {"same": found["sha256"] == resident}


def measure(
    folder: Path, files: str, budget: str, cache: Path | None, *, tiny: bool
) -> dict[str, Any]:
    """Seconds of imports and of a load, what was read meanwhile, and a small edit's picture."""
    began = time.perf_counter()
    import torch

    from tests.bench import converting, edits

    imports_s = time.perf_counter() - began
    if tiny:
        torch.set_num_threads(1)
    within = {} if budget in ("first", "none") else budgets.limits(budget, tiny=tiny)
    recipe = {"recipe": "fp8-weights"} if tiny else {}
    artefacts = converting.folder_of(folder)
    ready = artefacts if files == "an artefact" else artefacts / "none"
    engine, told = edits.loaded(folder, cache=cache, artifact_dir=str(ready), **recipe, **within)
    wanted = edits.Wanted(1, steps=2, tiny=tiny)
    pictures = edits.pictures(folder, "new", 1)
    return {
        "imports_s": round(imports_s, 2),
        "load_s": told.load_s,
        "notes": told.notes,
        "plan": told.memory_plan,
        "sha256": edits.once(engine, pictures, wanted, edits.PROMPT)["sha256"],
    }


if __name__ == "__main__":
    main()
