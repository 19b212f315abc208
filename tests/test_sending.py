"""What doors that send need."""

from __future__ import annotations

import asyncio

import pytest

from vellumd import sending


@pytest.mark.parametrize(
    ("header", "seconds"),
    [("120", 120.0), (" 5 ", 5.0), ("", None), ("soon", None), ("-1", None),
     ("Wed, 21 Oct 2015 07:28:00 GMT", 0.0)],
)  # fmt: skip
def test_retry_after_is_read(header: str, seconds: float | None) -> None:
    """A number, a date, or nothing."""
    assert sending.retry_after(header) == seconds


async def test_work_in_flight_outlives_its_caller(monkeypatch: pytest.MonkeyPatch) -> None:
    """If it is quick; what is not is ended."""
    monkeypatch.setattr(sending, "GRACE_S", 0.2)
    done: list[str] = []

    async def work(seconds: float) -> None:
        try:
            await asyncio.sleep(seconds)
            done.append("whole")
        except asyncio.CancelledError:
            done.append("ended")
            raise

    async with asyncio.TaskGroup() as tasks:
        for seconds in (0.05, 30):
            caller = tasks.create_task(sending.finish(work(seconds)))
            await asyncio.sleep(0.01)
            caller.cancel()
            await asyncio.wait([caller])
            assert caller.cancelled()
    assert done == ["whole", "ended"]
