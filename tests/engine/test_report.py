"""What an engine tells, as frames."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from vellumd.engine import report
from vellumd.protocol import Beat, FromEngine

TICK = 1 / 64
"""Seconds; a beat may come in every fourth."""


def test_beats_come_at_a_bearable_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first of each phase, then one in 50 ms: a toy model has hundreds of blocks a second."""
    sent: list[FromEngine] = []
    clock = iter(100 + number * TICK for number in range(200))
    monkeypatch.setattr(report, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    told = report.PipeReport(sent.append, preview=lambda: False)
    for number in range(96):
        told.beat("encode" if number < 48 else "denoise", number, 96)
    assert [beat.done for beat in sent if isinstance(beat, Beat)] == list(range(0, 96, 4))
    assert {beat.phase for beat in sent if isinstance(beat, Beat)} == {"encode", "denoise"}
    assert told.timings() == {"encode": 0.75, "denoise": 0.75}
