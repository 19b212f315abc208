"""The runner of what a card must tell: parts that fail or hang cost no other one anything."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.bench import budgets, card
from tests.bench.card import Part

GOOD = Part("good", 1, "prints", ("json.tool", "--help"))
BAD = Part("bad", 1, "fails", ("tests.bench.no_such_script",))


class Talking(Part):
    """One that says something in both ways, and fails."""

    def command(
        self, out: Path, folder: Path, more: Sequence[str] = (), *, tiny: bool
    ) -> list[str]:
        code = "print('first', flush=True); raise SystemExit('last')"
        return [sys.executable, "-c", code]


class Endless(Part):
    """One that sleeps."""

    def command(
        self, out: Path, folder: Path, more: Sequence[str] = (), *, tiny: bool
    ) -> list[str]:
        return [sys.executable, "-c", "import time; time.sleep(600)"]


@pytest.fixture
def parts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """What becomes of some parts within a budget."""

    def of(*parts: Part, budget: str = "30") -> dict[str, Any]:
        monkeypatch.setattr(card, "PARTS", list(parts))
        out, folder = str(tmp_path / "out"), str(tmp_path / "weights")
        command = ["card", "--out", out, "--folder", folder, "--budget", budget]
        monkeypatch.setattr(sys, "argv", command)
        card.main()
        found: dict[str, Any] = json.loads((tmp_path / "out" / "card.json").read_bytes())
        return found

    return of


def test_a_part_that_fails_is_told_and_the_next_one_runs(parts: Any) -> None:
    """With its last words."""
    found = parts(BAD, GOOD)
    assert found["bad"]["became"] == "failed with exit code 1"
    assert "no_such_script" in found["bad"]["said"]
    assert found["good"]["became"] == "done"


def test_what_a_part_printed_is_kept_too(parts: Any) -> None:
    """In the order in which it came, beside its errors."""
    found = parts(Talking("talking", 1, "says", ()))
    assert found["talking"]["said"].split() == ["first", "last"]


def test_a_part_that_does_not_end_is_stopped(parts: Any) -> None:
    """When the budget is over; what would not fit any more is not begun."""
    late = Part("late", 1000, "takes long", ("json.tool",))
    found = parts(Endless("endless", 1, "does not end", ("sleep",)), late, budget="2")
    assert found["endless"]["became"] == "stopped: it took too long"
    assert found["late"]["became"] == "left out"


def test_cards_share_budgets() -> None:
    """Numbers between commas, the host's behind a plus; anything else is refused."""
    assert budgets.listed("18,12+8") == ("18", "12+8")
    with pytest.raises(ValueError, match="all"):
        budgets.listed("all")
    (part,) = (part for part in card.PARTS if part.name == "memory")
    given = part.command(Path("x.json"), Path("w"), ("--budgets", "18,12"), tiny=False)
    assert given[-2:] == ["--budgets", "18,12"]


def test_a_part_runs_at_tiny_size(tmp_path: Path) -> None:
    """From the command to the part's file, on any machine."""
    command = [
        sys.executable, "-m", "tests.bench.card", "--tiny", "--only", "loop",
        "--out", str(tmp_path / "out"), "--folder", str(tmp_path / "weights"),
    ]  # fmt: skip
    ran = subprocess.run(command, capture_output=True, check=True)
    assert b"loop: done" in ran.stdout
    assert json.loads((tmp_path / "out" / "loop.json").read_bytes())["waits"] in (0, None)
    assert json.loads((tmp_path / "out" / "card.json").read_bytes())["loop"]["became"] == "done"
