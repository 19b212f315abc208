"""When a file has been written: nothing about it changed for a while.

Pure: what was seen and the time are handed in, so it is tested without files and clocks.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass


@dataclass(slots=True)
class _Watched:
    """One thing that is waited for: as it was seen last, since when, when to ask again."""

    signature: Hashable
    since: float
    next: float | None


class StabilityTracker:
    """Tells which things have settled. All times are seconds of one monotonic clock.

    `settle_s` is how long a thing must look the same; `incomplete_s` how long a settled
    one that turns out not to be whole gets to become so.
    """

    def __init__(self, settle_s: float, incomplete_s: float) -> None:
        self._settle_s = settle_s
        self._incomplete_s = incomplete_s
        self._watched: dict[str, _Watched] = {}

    def __len__(self) -> int:
        return len(self._watched)

    def look(self, seen: Mapping[str, Hashable], now: float) -> None:
        """Take note of all there is now: signatures by key; what is gone is forgotten."""
        for key in self._watched.keys() - seen.keys():
            del self._watched[key]
        for key, signature in seen.items():
            watched = self._watched.get(key)
            if watched is None or watched.signature != signature:
                self._watched[key] = _Watched(signature, now, now + self._settle_s)

    def settled(self, now: float) -> list[str]:
        """Keys that look the same for `settle_s`, and were not put off beyond `now`."""
        return [
            key
            for key, watched in self._watched.items()
            if watched.next is not None and watched.next <= now
        ]

    def parked(self) -> list[str]:
        """Keys that are asked for again only when they change."""
        return [key for key, watched in self._watched.items() if watched.next is None]

    def due(self) -> float | None:
        """When the next one settles if nothing changes; None if none will."""
        times = (watched.next for watched in self._watched.values() if watched.next is not None)
        return min(times, default=None)

    def postpone(self, key: str, now: float, least_s: float = 0.1) -> None:
        """Ask again after `least_s` or more: somebody has it in hand."""
        if watched := self._watched.get(key):
            watched.next = now + max(self._settle_s, least_s)

    def incomplete(self, key: str, now: float) -> bool:
        """It settled but is not whole; whether its time is over. Else it is asked again."""
        watched = self._watched[key]
        ends = watched.since + self._settle_s + self._incomplete_s
        watched.next = min(now + max(self._settle_s, self._incomplete_s / 10), max(ends, now))
        return now >= ends

    def park(self, key: str) -> None:
        """Do not ask again until it changes."""
        if watched := self._watched.get(key):
            watched.next = None

    def forget(self, key: str) -> None:
        """It was taken away; what comes under its name is another thing."""
        self._watched.pop(key, None)
