"""Thousands of jobs leave nothing behind in the daemon's process."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import Record
from tests.trust import soak


@pytest.mark.timeout(3600)
async def test_nothing_grows_with_the_jobs(tmp_path: Path, full: bool, record: Record) -> None:
    """1,000 jobs (10,000 in full): memory, descriptors, threads and tasks stay, the loop is quick.

    At most 1 MB per 1,000 jobs, and a loop lag below 50 ms in 99 of 100 looks; half a second
    beside other tests.
    """
    result = await soak.Soak(tmp_path, 10_000 if full else 1_000).run()
    record("soak", result)
    assert result["statuses"] == {"done": result["jobs"], "failed": 0, "cancelled": 0}
    assert result["engine_restarts"] == 0
    assert float(str(result["rss_mb_per_1000_jobs"])) <= (1 if full else 4)
    for name in soak.FLAT:
        assert float(str(result[f"{name}_growth"])) <= 2, result
    assert float(str(result["loop_lag_p99_s_at_most"])) <= (0.05 if full else 0.5)


def test_what_grows_is_seen() -> None:
    """A leak of 2 MB per 1,000 jobs, a descriptor a sample and a slow loop are not overlooked."""
    leaking = [soak.Sample(n * 100, 50 + n * 0.2, 20 + n, 12, 30) for n in range(100)]
    before = {soak.LAG % le: 0.0 for le in (*soak.LAG_S, "+Inf")}
    slow = {soak.LAG % le: 98.0 if float(le) < 0.1 else 100.0 for le in (*soak.LAG_S, "inf")}
    ended = {f'vellumd_jobs_ended_total{{source="http",status="{s}"}}': 0.0 for s in
             ("done", "failed", "cancelled")}  # fmt: skip
    after = {**slow, soak.LAG % "+Inf": 100.0, **ended, "vellumd_engine_restarts_total": 0.0}
    found = soak.summary(leaking, before, after)
    assert found["rss_mb_per_1000_jobs"] == pytest.approx(2)
    assert found["descriptors_growth"] > 2 and found["threads_growth"] == 0  # type: ignore[operator]
    assert found["loop_lag_p99_s_at_most"] == 0.1
