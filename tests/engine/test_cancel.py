"""Cancelling the demo model in its own process: within a block, and nothing stays behind."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from tests.engine.support import Child, encoded, picture
from vellumd import protocol

PICTURE = encoded(picture(64, 64))
STEPS = 100


@pytest.fixture(scope="module")
def demo_child(spawn: Callable[..., Child]) -> Child:
    """A child with the demo loaded, and warm."""
    child = spawn("vellumd.engine.start:create", model="demo")
    child.until(protocol.Ready)
    assert child.run("warm", [PICTURE], size="256x256").type == "done"
    return child


@pytest.mark.parametrize("after", [1, 5, 20])
def test_a_cancel_ends_the_edit_within_a_step(demo_child: Child, after: int) -> None:
    """Sent in the middle of the steps, it lets none finish but the one it came in, and is
    answered in seconds, on a busy machine too, where the edit takes many. Then the next edit
    runs as ever.
    """
    child, job = demo_child, f"cancel-{after}"
    child.send(child.edit(job, [PICTURE], steps=STEPS, true_cfg_scale=3.0, size="256x256"))
    for _ in range(after):
        child.until(protocol.Step)
    child.send(protocol.Cancel(job=job))
    sent = time.monotonic()
    *between, answer = child.until(protocol.Done, protocol.Failed)
    assert answer.code == "cancelled"
    assert sum(isinstance(frame, protocol.Step) for frame in between) <= 1
    assert time.monotonic() - sent <= 5
    assert not (child.spool / job / "result.json").exists()
    assert child.run(f"after-{after}", [PICTURE]).type == "done"


def test_a_cancel_before_the_steps(demo_child: Child) -> None:
    """One that comes with the edit ends it before a single step."""
    child = demo_child
    child.send(child.edit("early", [PICTURE], steps=STEPS))
    child.send(protocol.Cancel(job="early"))
    *between, answer = child.until(protocol.Done, protocol.Failed)
    assert answer.code == "cancelled"
    assert not any(isinstance(frame, protocol.Step) for frame in between)
