"""The first edits of a process, with a warm-up before them and without.

    python -m tests.bench.first --folder /dev/shm/model --out FILE
    python -m tests.bench.first --tiny --folder /tmp/demo      # does the script run?

Out of the artefact, which is made unless it is there. Each way in a process of its own, so that
nothing is compiled, chosen or kept from before but what lies in the user's cache of Triton.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch

from tests.bench import apart, converting, edits, random_model
from tests.bench.edits import Wanted
from tests.bench.record import Record
from vellumd.engine.report import PipeReport

WAYS = {"with a warm-up": True, "without": False}


def main() -> None:
    """Measure both ways and write them down; or one, as a child."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--tiny", action="store_true", help="the demo, on any machine")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--way", choices=WAYS, help="measure this one in this process")
    args = parser.parse_args()
    if args.way:
        print(json.dumps(measure(args.folder, warm=WAYS[args.way], tiny=args.tiny)))
        return
    record = Record(args.out)
    converting.made(random_model.there(args.folder, tiny=args.tiny))
    for way in WAYS:
        small = ["--tiny"] if args.tiny else []
        record[way] = apart.told("tests.bench.first", "--way", way, "--folder", args.folder, *small)


def measure(folder: Path, *, warm: bool, tiny: bool) -> dict[str, Any]:
    """Seconds of the load, of the warm-up if there is one, and of two edits that are alike."""
    if tiny:
        torch.set_num_threads(1)
    recipe = {"recipe": "fp8-weights"} if tiny else {}
    ready = str(converting.folder_of(folder))
    engine, told = edits.loaded(folder, artifact_dir=ready, **recipe)
    found: dict[str, Any] = {"load_s": told.load_s}
    if warm:
        began = time.perf_counter()
        engine.warm_up(PipeReport(lambda frame: None, preview=lambda: False), lambda: False)
        found["warm_up_s"] = round(time.perf_counter() - began, 2)
    wanted = Wanted(1 if tiny else 3, steps=2 if tiny else 8, tiny=tiny)
    files = edits.pictures(folder, "new", wanted.references)
    for name in ("first", "second"):
        engine._model.store.clear()  # type: ignore[union-attr]
        edit = edits.once(engine, files, wanted, edits.PROMPT)
        found[name] = {key: edit[key] for key in ("edit_s", "forward_s", "timings_s")}
    return found


if __name__ == "__main__":
    main()
