"""Confidence intervals, against published figures and against chance itself."""

from __future__ import annotations

import numpy as np
import pytest

from vellumd.demo import intervals


@pytest.mark.parametrize(
    ("passed", "n", "low", "high"),
    [
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
        (10, 10, 0.7225, 1.0),
    ],
)
def test_wilson(passed: int, n: int, low: float, high: float) -> None:
    """The figures of Newcombe, Statistics in Medicine 17 (1998) 857-872, table I."""
    assert intervals.wilson(passed, n) == pytest.approx((low, high), abs=1e-4)


@pytest.mark.parametrize(
    ("table", "low", "high"),
    [((20, 12, 2, 16), 0.0562, 0.3292), ((36, 12, 2, 0), 0.0569, 0.3404)],
)
def test_paired(table: tuple[int, int, int, int], low: float, high: float) -> None:
    """Method 10 of Newcombe, Statistics in Medicine 17 (1998) 2635-2650."""
    assert intervals.paired(*table) == pytest.approx((low, high), abs=1e-4)


def test_paired_turns_with_its_sides() -> None:
    """Whoever comes first, the interval is the same with the sign changed."""
    low, high = intervals.paired(80, 9, 3, 8)
    assert intervals.paired(80, 3, 9, 8) == pytest.approx((-high, -low))


def test_paired_covers_the_truth() -> None:
    """Of many exams about 95 % have the true difference in their interval."""
    shares = [0.88, 0.03, 0.05, 0.04]
    tables = np.random.default_rng(0).multinomial(500, shares, size=2000)
    bounds = np.array([intervals.paired(*map(int, table)) for table in tables])
    covered = (bounds[:, 0] <= -0.02) & (bounds[:, 1] >= -0.02)
    assert 0.93 < covered.mean() < 0.98
