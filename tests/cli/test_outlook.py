"""What doctor says of a model on the card, as the engine's process tells it."""

from __future__ import annotations

import json
import sys
from typing import Any

import pytest

from vellumd import platform
from vellumd.cli import checks, client, outlook
from vellumd.cli.checks import Card
from vellumd.hookspecs import Check
from vellumd.settings import Settings

FOUND = {
    "recipe": "fp8-weights", "attention": "flash", "refused": {"fa3": "no module"},
    "plan": "12 blocks streamed, a balanced edit: about 9 s", "fits": True,
}  # fmt: skip


@pytest.fixture(autouse=True)
def card(monkeypatch: pytest.MonkeyPatch) -> None:
    """A card that torch can use, and no daemon."""
    monkeypatch.setattr(platform, "nvidia_driver", lambda: True)
    monkeypatch.setattr(checks, "torch_says", lambda: ("13.0", Card("Card", 24, (8, 6))))
    monkeypatch.setattr(client, "announced", lambda _: None)


def told(monkeypatch: pytest.MonkeyPatch, said: str) -> list[Check]:
    """What becomes of a process that prints `said`."""
    monkeypatch.setattr(outlook, "COMMAND", [sys.executable, "-c", f"print({said!r})"])
    return list(outlook.outlook(Settings()))


def test_recipe_plan_and_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    """What runs, what does not and why, and how long an edit takes."""
    assert told(monkeypatch, f"a stray line\n{json.dumps(FOUND)}") == [
        Check(True, "recipe fp8-weights, attention flash"),
        Check(True, "note: fa3 does not run here (no module)"),
        Check(True, "memory plan: 12 blocks streamed, a balanced edit: about 9 s"),
    ]


@pytest.mark.parametrize(
    ("said", "wrong"),
    [
        (json.dumps({**FOUND, "fits": False}), "larger than card and host have left"),
        (json.dumps({"error": "The recipe does not run."}), "The recipe does not run."),
        ("nonsense", "cannot plan"),
        ("", "cannot plan"),
    ],
)
def test_what_is_to_mend(monkeypatch: pytest.MonkeyPatch, said: str, wrong: str) -> None:
    """A plan that does not fit, a start that would fail, an engine that says nothing."""
    *_, last = told(monkeypatch, said)
    assert not last.ok and wrong in last.text


def test_nothing_is_asked_in_vain(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a card, without a torch for it, and while a daemon has it."""
    monkeypatch.setattr(outlook, "COMMAND", ["no such command"])
    for place, name, value in (
        (platform, "nvidia_driver", lambda: False),
        (checks, "torch_says", lambda: (None, None)),
        (client, "announced", lambda _: object()),
    ):
        with monkeypatch.context() as patched:
            patched.setattr(place, name, value)
            assert list(outlook.outlook(Settings())) == []
    found: list[Any] = list(outlook.outlook(Settings()))
    assert not found[0].ok
