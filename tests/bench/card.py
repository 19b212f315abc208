"""Everything that only a card can tell, part after part, with random weights of the real size.

    python -m tests.bench.card --list
    python -m tests.bench.card --out FOLDER [--only kernels,loop] [--budget 530]
    python -m tests.bench.card --out FOLDER --tiny        # on any machine: does all of it run?

Each part runs in a process of its own and writes FOLDER/PART.json as it goes, so that a part
that fails, loses the card or is cut short costs no other one anything. A part that would not
end within the budget is left out; one that does not end is stopped. What became of each is in
FOLDER/card.json, what it said in FOLDER/PART.log. docs/performance.md says how to renew all
figures.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

BUDGET = 530.0
"""Seconds of one call: many who lend cards allow ten minutes."""
FOLDER = Path("/dev/shm/vellumd-bench")
TOLD = 2000
"""Characters of a part's last words that are kept."""


@dataclass(frozen=True)
class Part:
    """A script with arguments, the seconds it takes on an H200, and what it finds.

    `weights`: the folder, within that for weights, in which it makes its own; None: it makes
    none. `sized`: what makes it large, or tiny.
    """

    name: str
    seconds: int
    what: str
    script: tuple[str, ...]
    weights: str | None = None
    sized: tuple[tuple[str, ...], tuple[str, ...]] = (), ("--tiny",)

    def command(
        self, out: Path, folder: Path, more: Sequence[str] = (), *, tiny: bool
    ) -> list[str]:
        """What is run: it writes `out`, has `folder` for weights, and is given `more`."""
        command = [sys.executable, "-m", *self.script, "--out", str(out), *self.sized[tiny]]
        return [
            *command, *(["--folder", str(folder / self.weights)] if self.weights else []), *more
        ]  # fmt: skip


BENCH = "vellumd.engine", "bench", "--rounds", "3"
SIZED = ("--random", "--layers", "60"), ("--rounds", "1")
PARTS = [
    Part("kernels", 30, "which kernels run, errors, times", ("tests.bench.blocks", "kernels")),
    Part("loop", 20, "nothing waits for the card", ("tests.bench.blocks", "loop")),
    Part("trace", 25, "where a block's time goes", ("tests.bench.blocks", "trace")),
    Part("host", 30, "what a block costs the host", ("tests.bench.host",), sized=((), ())),
    Part("pinning", 25, "blocks into the host's memory, pinned three ways",
         ("tests.bench.pinning",), weights="."),
    Part("edits", 400, "artefact, whole edits, predecessor's too, VAE and encoder",
         ("tests.bench.full_size",), weights="model"),
    Part("first", 80, "a process's first edits, with a warm-up and without",
         ("tests.bench.first",), weights="model"),
    Part("reference", 380, "all methods, 3 references", BENCH, sized=SIZED),
    Part("memory", 400, "artefact, budgets", ("tests.bench.memory",), weights="model"),
    Part("loads", 330, "how soon an engine is ready: files, budgets",
         ("tests.bench.loads",), weights="model"),
    Part("loading", 110, "a transformer to the card, three ways",
         ("tests.bench.loading", "--rounds", "2"), weights="."),
    Part("precision", 120, "errors of rounding, 40 blocks",
         ("tests.bench.precision", "--blocks", "40")),
    Part("one", 130, "methods, 1 reference",
         (*BENCH, "--references", "1", "--skip", "compiled;no Triton"), sized=SIZED),
    Part("sizes", 100, "references and megapixels", ("tests.bench.blocks", "sizes")),
]  # fmt: skip
"""The most wanted first. The first of `edits`, `first`, `memory` and `loads` makes the artefact."""


def main() -> None:
    """Run the parts that fit into the budget."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.card", description=__doc__)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--only", default=",".join(part.name for part in PARTS))
    parser.add_argument("--budget", type=float, default=BUDGET, help="seconds of all parts")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="for weights, 106 GB")
    parser.add_argument("--budgets", help="of part `memory`: gigabytes, so that cards share them")
    parser.add_argument("--tiny", action="store_true", help="the demo's size, on any machine")
    parser.add_argument("--list", action="store_true", help="tell the parts and end")
    args = parser.parse_args()
    names = args.only.split(",")
    if unknown := set(names) - {part.name for part in PARTS}:
        parser.error(f"no part {', '.join(sorted(unknown))}; --list tells them")
    if args.list or args.out is None:
        for part in PARTS:
            print(f"{part.name:10} {part.seconds:4} s  {part.what}")
        return
    args.out.mkdir(parents=True, exist_ok=True)
    args.folder.mkdir(parents=True, exist_ok=True)
    print(f"about {sum(p.seconds for p in PARTS if p.name in names)} s in all", flush=True)
    until = time.monotonic() + args.budget
    became: dict[str, Any] = {}
    for part in (part for part in PARTS if part.name in names):
        left = until - time.monotonic()
        print(f"{part.name}: about {part.seconds} s, {left:.0f} s left", flush=True)
        more = ("--budgets", args.budgets) if part.name == "memory" and args.budgets else ()
        became[part.name] = run(part, args.out, args.folder, left, more, tiny=args.tiny)
        print(f"{part.name}: {became[part.name]['became']}", flush=True)
        (args.out / "card.json").write_text(json.dumps(became, indent=1) + "\n")


def run(
    part: Part, out: Path, folder: Path, left: float, more: Sequence[str] = (), *, tiny: bool
) -> dict[str, Any]:
    """One part in its process; what became of it, and what it said last where it failed."""
    if left <= (0 if tiny else 0.6 * part.seconds):
        return {"became": "left out", "seconds_left": round(left)}
    log = out / f"{part.name}.log"
    command = part.command(out / f"{part.name}.json", folder, more, tiny=tiny)
    began = time.monotonic()
    with log.open("wb") as said:
        process = subprocess.Popen(
            command, stdout=said, stderr=said, start_new_session=os.name == "posix"
        )
        try:
            code = process.wait(max(1.0, left))
            became = "done" if code == 0 else f"failed with exit code {code}"
        except subprocess.TimeoutExpired:
            stop(process)
            became = "stopped: it took too long"
    found = {"became": became, "seconds": round(time.monotonic() - began, 1)}
    if became != "done":
        found["said"] = log.read_text(errors="replace")[-TOLD:]
    return found


def stop(process: subprocess.Popen[bytes]) -> None:
    """End a part, and the processes that it started."""
    if os.name == "posix":
        import signal

        os.killpg(process.pid, signal.SIGKILL)
    process.kill()
    process.wait()


if __name__ == "__main__":
    main()
