"""How long the command line takes to start; `make bench` prints the figures."""

from __future__ import annotations

import subprocess
import sys
import time

HELP_S = 0.15
"""Seconds that `vellumd --help` may take beyond a bare interpreter."""


def best_of(count: int, *words: str) -> float:
    """The least seconds that a fresh interpreter needs for `words`."""
    seconds = []
    for _ in range(count):
        started = time.perf_counter()
        subprocess.run([sys.executable, *words], stdout=subprocess.DEVNULL, check=True)
        seconds.append(time.perf_counter() - started)
    return min(seconds)


def test_help_is_quick() -> None:
    """The help costs at most `HELP_S` more than starting Python itself."""
    bare = best_of(7, "-c", "pass")
    with_help = best_of(7, "-m", "vellumd", "--help")
    print(f"\nvellumd --help: {with_help - bare:.3f} s beyond the interpreter's {bare:.3f} s")
    assert with_help - bare <= HELP_S
