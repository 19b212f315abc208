"""When to ask again: slower while a queue is empty, rarely while its server fails."""

from __future__ import annotations

import random
from dataclasses import dataclass

SLOWER = 1.1
RETRY_AFTER_MAX_S = 3600.0
"""Longest `Retry-After` in seconds that is obeyed."""


@dataclass(frozen=True)
class Pace:
    """How often a server is asked.

    `idle_s` are the seconds between two polls of an empty queue, `idle_max_s` of one that has
    been empty for long: after `patience` empty answers polling slows down, since work comes in
    flocks. `failed_max_s` is the longest pause after failures, unless the server asks for more.
    """

    idle_s: float = 1.0
    idle_max_s: float = 5.0
    patience: int = 120
    failed_max_s: float = 60.0


class Idling:
    """Pauses between polls of an empty queue."""

    def __init__(self, pace: Pace) -> None:
        self._pace = pace
        self._empty = 0

    def found(self) -> None:
        """There was a job."""
        self._empty = 0

    def pause(self) -> float:
        """Seconds from the last poll to the next, after one more empty answer."""
        self._empty += 1
        slower = max(0, self._empty - self._pace.patience)
        # The power of a long night would be too large for a float.
        return float(min(self._pace.idle_max_s, self._pace.idle_s * SLOWER ** min(slower, 100)))


class Backoff:
    """Pauses after failures in a row: exponential with full jitter, so that the workers of a
    server that comes back do not all come at once. `least` is the shortest in seconds; unset,
    that of an empty queue.
    """

    def __init__(self, pace: Pace, least: float | None = None) -> None:
        self.failures = 0
        self._pace = pace
        self._least = pace.idle_s if least is None else least

    def succeeded(self) -> None:
        """The server is well."""
        self.failures = 0

    def pause(self, retry_after: float | None = None) -> float:
        """Seconds to wait after one more failure; `retry_after` is the server's own wish."""
        self.failures += 1
        if retry_after is not None:
            return max(self._least, min(retry_after, RETRY_AFTER_MAX_S))
        ceiling = min(self._pace.failed_max_s, self._pace.idle_s * 2 ** min(self.failures, 10))
        return random.uniform(self._least, ceiling)
