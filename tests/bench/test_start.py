"""How long the command line takes to start; `make bench` prints the figures."""

from __future__ import annotations

import os
import subprocess
import sys

HELP_S = 0.15
"""Seconds that `vellumd --help` may take beyond a bare interpreter."""


def best_of(count: int, *words: str) -> float:
    """The least seconds that a fresh interpreter computes for `words`, whoever else does."""
    seconds = []
    for _ in range(count):
        before = os.times()
        subprocess.run([sys.executable, *words], stdout=subprocess.DEVNULL, check=True)
        after = os.times()
        user = after.children_user - before.children_user
        seconds.append(user + after.children_system - before.children_system)
    return min(seconds)


def test_help_is_quick() -> None:
    """The help costs at most `HELP_S` more than starting Python itself."""
    bare = best_of(7, "-c", "pass")
    with_help = best_of(7, "-m", "vellumd", "--help")
    print(f"\nvellumd --help: {with_help - bare:.3f} s beyond the interpreter's {bare:.3f} s")
    assert with_help - bare <= HELP_S
