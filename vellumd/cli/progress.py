"""How a running edit is shown: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from types import TracebackType
from typing import Any, TextIO

WIDTH = 24
"""Characters of the bar."""


class Progress:
    """Shows the progress of edits on standard error, after `title`."""

    def __init__(self, title: str, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stderr
        self._bar = self._stream.isatty()
        self._last = ""
        print(title, file=self._stream, flush=True)

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self.end()

    def show(self, state: Mapping[str, Any]) -> None:
        """Show a `models.Progress` as a mapping; what was just shown is not repeated."""
        line = describe(state)
        if line == self._last:
            return
        if self._bar:
            bar = _bar(state["step"], state["steps"])
            text = f"{bar} {line}".ljust(len(self._last) + WIDTH + 3)
            print(f"\r{text}", end="", file=self._stream, flush=True)
        else:
            print(line, file=self._stream, flush=True)
        self._last = line

    def end(self) -> None:
        """Leave the bar's line, so that others can print."""
        if self._bar and self._last:
            print(file=self._stream, flush=True)
        self._last = ""


def describe(state: Mapping[str, Any]) -> str:
    """One line about a running edit, e.g. `denoise, step 3 of 8, 12 s left`."""
    parts = [str(state["phase"])]
    if state["images"] > 1:
        parts.append(f"image {state['image']} of {state['images']}")
    if state["steps"]:
        parts.append(f"step {state['step']} of {state['steps']}")
    if state["eta_s"] is not None:
        parts.append(f"{state['eta_s']:.0f} s left")
    return ", ".join(parts)


def _bar(done: int, of: int) -> str:
    filled = WIDTH * done // of if of else 0
    return f"[{'#' * filled}{'.' * (WIDTH - filled)}]"
