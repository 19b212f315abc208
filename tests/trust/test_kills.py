"""SIGKILL at random points under load: nothing accepted is lost, nothing ends twice."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.conftest import Record
from tests.trust import kills


async def judge(plan: kills.Plan, record: Record) -> dict[str, object]:
    """Carry a plan out; seed and figures are told also when all is well."""
    result = await kills.run(plan)
    record(f"kills-{plan.engine}", result)
    return result


@pytest.mark.timeout(3600)
async def test_daemon_kills_under_load(tmp_path: Path, full: bool, record: Record) -> None:
    """Five kills (200 in full): every accepted job is done once and its files match."""
    plan = kills.Plan(tmp_path, 200 if full else 5, random.SystemRandom().randrange(2**32))
    result = await judge(plan, record)
    assert result["broken"] == []
    assert result["statuses"] == {"done": result["accepted"]}


@pytest.mark.timeout(3600)
async def test_daemon_kills_with_the_real_engine(
    tmp_path: Path, full: bool, record: Record
) -> None:
    """The same with the real classes in the engine process."""
    seed = random.SystemRandom().randrange(2**32)
    plan = kills.demo_plan(kills.Plan(tmp_path, 10 if full else 1, seed))
    result = await judge(plan, record)
    assert result["broken"] == []
    assert result["statuses"] == {"done": result["accepted"]}
