"""When to start the next engine after one died, and when to stop hoping for a while."""

from __future__ import annotations

DEATHS = 3
"""Deaths in a row that open the circuit: one poison job, which may cause two, does not."""
RESTART_S = (0.0, 1.0)
"""Seconds before the next start, by deaths in a row, while the circuit is closed."""
PROBE_S = (5.0, 15.0, 60.0, 300.0)
"""Seconds before the next trial, by openings in a row: mended soon is seen soon."""


class Circuit:
    """Counts the deaths of engine processes. Open means: none is trusted with a job.

    An answered probe ends a row of deaths and closes the circuit; only a finished job
    lets the pauses between trials start anew, since an engine may answer probes and die
    of every job.
    """

    def __init__(
        self, restart_s: tuple[float, ...] = RESTART_S, probe_s: tuple[float, ...] = PROBE_S
    ) -> None:
        self._restart_s = restart_s
        self._probe_s = probe_s
        self._deaths = 0
        self._openings = 0
        self.open = False

    def died(self, hopeless: bool = False) -> float:
        """An engine ended; seconds until the next. `hopeless`: it said that it cannot load."""
        self._deaths += 1
        if self.open or hopeless or self._deaths >= DEATHS:
            self.open = True
            self._openings += 1
            return self._probe_s[min(self._openings, len(self._probe_s)) - 1]
        return self._restart_s[min(self._deaths, len(self._restart_s)) - 1]

    def answered(self) -> None:
        """A loaded engine answered a probe."""
        self._deaths = 0
        self.open = False

    def worked(self) -> None:
        """An engine finished a job, with a result or with a reason."""
        self.answered()
        self._openings = 0
