"""The times that the benches tell: of something, and of what it calls."""

from __future__ import annotations

import time
from types import SimpleNamespace

import pytest

from tests.bench.median import shares


def test_shares_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """To the whole, in each round; calls of one name are summed, and nothing stays replaced.

    In turns with them the whole is timed with nothing replaced.
    """
    now = 0.0
    monkeypatch.setattr(time, "perf_counter", lambda: now)

    def takes(ms: float) -> float:
        nonlocal now
        now += ms / 1000
        return ms

    one = SimpleNamespace(often=takes, once=lambda *, ms: takes(ms))
    before = vars(one).copy()

    def run() -> None:
        takes(5 if vars(one) == before else 6)
        assert sum(one.often(ms) for ms in (10, 20)) == 30
        one.once(ms=100)

    parts = {"often": (one, "often"), "once": (one, "once")}
    assert shares(run, parts) == {
        "often": 30, "once": 100, "the rest": 6, "in all": 136, "undivided": 135,
    }  # fmt: skip
    assert vars(one) == before
