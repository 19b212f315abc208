"""95 % confidence intervals of shares."""

from __future__ import annotations

import math

Z = 1.959964
"""The normal distribution's 97.5th percentile."""


def wilson(passed: int, n: int) -> tuple[float, float]:
    """Of `passed` out of `n`: the score interval of Wilson (1927), right also near 0 and 1."""
    share = passed / n
    middle = share + Z**2 / (2 * n)
    reach = Z * math.sqrt(share * (1 - share) / n + Z**2 / (4 * n**2))
    scale = 1 + Z**2 / n
    return max(0.0, (middle - reach) / scale), min(1.0, (middle + reach) / scale)


def paired(both: int, gained: int, lost: int, neither: int) -> tuple[float, float]:
    """Of the difference (gained - lost) / n between two shares of the same n.

    Method 10 of Newcombe, Statistics in Medicine 17 (1998) 2635-2650: the Wilson intervals
    of both shares, joined by their correlation phi.
    """
    n = both + gained + lost + neither
    after, before = (both + gained) / n, (both + lost) / n
    difference = after - before
    after_low, after_high = wilson(both + gained, n)
    before_low, before_high = wilson(both + lost, n)
    phi = _correlation(both, gained, lost, neither)
    below, above = after - after_low, before_high - before
    low = math.sqrt(max(0.0, below**2 - 2 * phi * below * above + above**2))
    below, above = before - before_low, after_high - after
    high = math.sqrt(max(0.0, below**2 - 2 * phi * below * above + above**2))
    return difference - low, difference + high


def _correlation(both: int, gained: int, lost: int, neither: int) -> float:
    """Phi of the 2x2 table, with Newcombe's correction; 0 where a side is empty."""
    margins = (both + gained) * (lost + neither) * (both + lost) * (gained + neither)
    if margins == 0:
        return 0.0
    n = both + gained + lost + neither
    determinant: float = both * neither - gained * lost
    if determinant > 0:
        determinant = max(determinant - n / 2, 0.0)
    return determinant / math.sqrt(margins)
