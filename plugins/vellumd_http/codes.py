"""One-time codes: how a page that is signed in lets another browser in."""

from __future__ import annotations

import hashlib
import secrets
import time
from collections.abc import Callable

LIFE_S = 120
"""Seconds in which a code has to be used: enough to point a camera at it."""
MOST = 16
"""Codes that are open at the same time; the oldest ends for a new one."""


class Codes:
    """Codes that open the door once, for what they were made for. They end with the daemon.

    The key itself is in no code: a page does not know it. `owner` says whose key it is by
    the key's digest, so whoever comes in by a code goes out with that key.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._open: dict[str, tuple[str, float]] = {}

    def make(self, owner: str) -> str:
        """A code of 128 random bits; only its hash is kept."""
        code = secrets.token_urlsafe(16)
        self._open[_hash(code)] = (owner, self._clock() + LIFE_S)
        while len(self._open) > MOST:
            del self._open[next(iter(self._open))]
        return code

    def take(self, code: str) -> str | None:
        """The owner of `code`, which opens nothing from now on; None for one that is no code."""
        owner, until = self._open.pop(_hash(code), ("", 0.0))
        return owner if owner and self._clock() < until else None


def _hash(code: str) -> str:
    return hashlib.sha256(code.encode(errors="surrogateescape")).hexdigest()
