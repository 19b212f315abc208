"""What the demo promises about its edits, on a thousand unseen scenes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Record
from vellumd.demo import exam
from vellumd.demo.world import KINDS

JOBS = os.cpu_count() or 1
RESULT = Path(__file__).parent / "results" / "judge.json"
EXAMS: dict[str, tuple[str, ...]] = {
    "base": (),
    "fastest": ("--preset", "fastest"),
    "balanced": ("--preset", "balanced"),
    "unguided": ("--cfg", "1"),
    "held_out": ("--held-out",),
    "open": ("--kinds", "add,elsewhere,another,caption", "--seed", "1"),
    "captions": ("--kinds", "caption", "--seed", "1"),
    "captions unguided": ("--kinds", "caption", "--seed", "1", "--cfg", "1"),
}
"""By name what the judge's command is given. *open* and *captions* ask the kinds that are not
always right more often: of 80 edits a share of 0.93 is known to 0.06 only, of 400 to 0.025."""
COUNTS = {"open": 1600, "captions": 400, "captions unguided": 400}
"""Edits of exams that do not ask 80 of each kind."""
LEAST = {"base": 0.95, "fastest": 0.90}
LEAST_VAE = 0.985
"""Of answers that only went through the VAE."""
LEAST_KIND = 0.90
"""Of the base weights in each kind."""
GUIDED = 0.10
"""How much more captions are understood with guidance than without."""


def judged(n: int, *arguments: str) -> dict[str, Any]:
    """What the judge's command tells of `n` edits of 8 steps."""
    command = [sys.executable, "-m", "vellumd.demo.judge", "--n", str(n), "--steps", "8", "--json"]
    command += ["--jobs", str(JOBS if n >= 80 else 1)]
    done = subprocess.run([*command, *arguments], stdout=subprocess.PIPE, check=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def keep(name: str, found: object) -> None:
    """Write `found` into the file of results, beside what stands there."""
    there = json.loads(RESULT.read_text()) if RESULT.exists() else {}
    there[name] = found
    there["at"] = datetime.now().astimezone().isoformat()
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps(there, indent=1) + "\n")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """All exams when full, else those with a promise."""
    if "name" in metafunc.fixturenames:
        metafunc.parametrize("name", EXAMS if metafunc.config.getoption("--full") else LEAST)


@pytest.mark.timeout(3600)
def test_success(name: str, full: bool) -> None:
    """1,040 edits (6 when not full) pass as often as promised, in all and in each kind.

    Of a few edits only so much can be told: that the promise is not out of reach. What has
    no promise (balanced, unseen phrasings) is recorded.
    """
    n = COUNTS.get(name, 80 * len(KINDS)) if full else len(KINDS) // 2
    found = judged(n, *EXAMS[name])
    assert found["n"] == sum(score["n"] for score in found["kinds"].values()) == n
    if full:
        keep(name, found)
    best = found["success"] if full else found["interval"][1]
    assert best >= LEAST.get(name, 0)
    if full and name in ("base", "open"):
        for kind, score in found["kinds"].items():
            # Of 80 edits the interval says whether the promise holds, of 400 the share.
            share = score["success"] if score["n"] >= 400 else score["interval"][1]
            assert share >= LEAST_KIND, kind


def test_captions_need_guidance(full: bool) -> None:
    """Without guidance captions are understood clearly less often.

    Looked up in the record of the last full run, which the exams above renew: the same captions
    and the same noise.
    """
    there = json.loads(RESULT.read_text())
    guided, unguided = (there[name]["success"] for name in ("captions", "captions unguided"))
    assert guided - unguided >= GUIDED


@pytest.mark.timeout(3 * 3600)
def test_gate(full: bool, record: Record) -> None:
    """What the gate accepts it accepts on 1,040 edits, the VAE alone too; it rejects the rest.

    Damage shows sooner than its absence: a quarter of the edits does for what is rejected.
    When not full, two edits of one recipe each way: tests/engine/test_gate.py asks all.
    """
    from tests.engine import gate

    large = exam.draw(80 * len(KINDS) if full else 2, seed=0)
    small = large[: 20 * len(KINDS)]
    vae = gate.round_trip(gate.demo(), large)
    assert (vae.success if full else vae.interval[1]) >= LEAST_VAE
    jobs, most = (JOBS, None) if full else (1, 1)
    accepted, rejected = (tuple(of)[:most] for of in (gate.TIERS | gate.ACCEPTED, gate.REJECTED))
    # A process takes seconds to start: of two edits one does for all.
    parts = [(large, accepted), (small, rejected)] if full else [(large, accepted + rejected)]
    found = {}
    for questions, names in parts:
        found |= gate.figures(questions, names, jobs)[1]
    if full:
        keep("vae", vae.model_dump())
    record("gate", found)
    assert {name for name in found if found[name]["complaints"]} == {*rejected}
