"""Polling slows down while there is nothing, and after failures."""

from __future__ import annotations

import itertools

from vellumd_queue.backoff import Backoff, Idling, Pace


def test_idle_polling_falls() -> None:
    """At most once a second; after long silence once in five; a job brings the second back."""
    idling = Idling(Pace())
    pauses = [idling.pause() for _ in range(3000)]
    assert pauses[:100] == [1.0] * 100
    assert all(later >= earlier for earlier, later in itertools.pairwise(pauses))
    assert pauses[-1] == 5.0
    idling.found()
    assert idling.pause() == 1.0


def test_failures_are_met_with_full_jitter() -> None:
    """Between a second and a ceiling that doubles up to a minute; all of the span is used."""
    ceilings = [2, 4, 8, 16, 32, 60, 60]
    drawn: list[list[float]] = [[] for _ in ceilings]
    for _ in range(300):
        backoff = Backoff(Pace())
        for pauses in drawn:
            pauses.append(backoff.pause())
    for pauses, ceiling in zip(drawn, ceilings, strict=True):
        assert 1 <= min(pauses) < 1 + ceiling / 10
        assert ceiling * 0.9 < max(pauses) <= ceiling


def test_the_servers_wish_is_obeyed() -> None:
    """Retry-After counts instead of our guess, within bounds; success forgets all."""
    backoff = Backoff(Pace())
    assert backoff.pause(120) == 120
    assert backoff.pause(0) == 1
    assert backoff.pause(10**9) == 3600
    assert backoff.failures == 3
    backoff.succeeded()
    assert backoff.pause() <= 2
