"""When to ask again: slower while a queue is empty, rarely while its server fails."""

from __future__ import annotations

import random

IDLE_S = 1.0
"""Seconds between two polls of an empty queue."""
IDLE_MAX_S = 5.0
"""Seconds between two polls of a queue that has been empty for long."""
PATIENCE = 120
"""Empty answers in a row, a second apart, before polling slows down: work comes in flocks."""
SLOWER = 1.1
FAILED_MAX_S = 60.0
"""Longest pause after failures, unless the server itself asks for more."""
RETRY_AFTER_MAX_S = 3600.0
"""Longest `Retry-After` that is obeyed."""


class Idling:
    """Pauses between polls of an empty queue."""

    def __init__(self) -> None:
        self._empty = 0

    def found(self) -> None:
        """There was a job."""
        self._empty = 0

    def pause(self) -> float:
        """Seconds from the last poll to the next, after one more empty answer."""
        self._empty += 1
        slower = max(0, self._empty - PATIENCE)
        # The power of a long night would be too large for a float.
        return float(min(IDLE_MAX_S, IDLE_S * SLOWER ** min(slower, 100)))


class Backoff:
    """Pauses after failures in a row: exponential with full jitter, so that the workers of a
    server that comes back do not all come at once.
    """

    def __init__(self, least: float = IDLE_S) -> None:
        self.failures = 0
        self._least = least

    def succeeded(self) -> None:
        """The server is well."""
        self.failures = 0

    def pause(self, retry_after: float | None = None) -> float:
        """Seconds to wait after one more failure; `retry_after` is the server's own wish."""
        self.failures += 1
        if retry_after is not None:
            return max(self._least, min(retry_after, RETRY_AFTER_MAX_S))
        ceiling = min(FAILED_MAX_S, IDLE_S * 2 ** min(self.failures, 10))
        return random.uniform(self._least, ceiling)
