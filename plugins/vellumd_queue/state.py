"""How the servers are, in one sentence that changes only when one of them does."""

from __future__ import annotations

from collections.abc import Callable

DOWN_AFTER = 3
"""Failures in a row after which a server counts as down: one lost packet is no news."""


class State:
    """One server: whether it gives jobs and takes results. `changed` is told of each change."""

    def __init__(self, url: str, changed: Callable[[], None]) -> None:
        self._url = url
        self._changed = changed
        self._failures: dict[str, int] = {}
        self._troubles: dict[str, str] = {}

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong with it."""
        return not self._troubles

    @property
    def text(self) -> str:
        """How it is."""
        if self.ok:
            return f"polls {self._url}"
        return f"{self._url} {next(iter(self._troubles.values()))}; asked again within a minute"

    def succeeded(self, what: str) -> None:
        """It did its part: `what` is jobs or results."""
        self._failures.pop(what, None)
        if self._troubles.pop(what, None):
            self._changed()

    def failed(self, what: str, text: str) -> None:
        """It did not; `text` continues "the server ..."."""
        self._failures[what] = self._failures.get(what, 0) + 1
        if self._failures[what] == DOWN_AFTER:
            self._troubles[what] = text
            self._changed()
