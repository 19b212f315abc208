"""SIGKILL at random points under load: nothing accepted is lost, nothing ends twice."""

from __future__ import annotations

import json
import random
from datetime import datetime
from pathlib import Path

import pytest

from tests.trust import kills

RESULTS = Path(__file__).parent / "results"


async def judge(
    plan: kills.Plan, full: bool, capsys: pytest.CaptureFixture[str]
) -> dict[str, object]:
    """Carry a plan out; seed and figures are shown also when all is well."""
    result = await kills.run(plan)
    with capsys.disabled():
        print(f"\n{json.dumps(result)}")
    if full:
        RESULTS.mkdir(exist_ok=True)
        record = {"at": datetime.now().astimezone().isoformat(), **result}
        text = json.dumps(record, indent=1)
        (RESULTS / f"kills-{plan.engine}.json").write_text(text + "\n")
    return result


@pytest.mark.timeout(3600)
async def test_daemon_kills_under_load(
    tmp_path: Path, full: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    """20 kills (200 in full): every accepted job is done once and its files match."""
    plan = kills.Plan(tmp_path, 200 if full else 20, random.SystemRandom().randrange(2**32))
    result = await judge(plan, full, capsys)
    assert result["broken"] == []
    assert result["statuses"] == {"done": result["accepted"]}


@pytest.mark.timeout(3600)
async def test_daemon_kills_with_the_real_engine(
    tmp_path: Path, full: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same with the real classes in the engine process."""
    seed = random.SystemRandom().randrange(2**32)
    plan = kills.demo_plan(kills.Plan(tmp_path, 10 if full else 1, seed))
    result = await judge(plan, full, capsys)
    assert result["broken"] == []
    assert result["statuses"] == {"done": result["accepted"]}
