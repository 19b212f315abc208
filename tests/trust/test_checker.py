"""The checker: a kept history passes, and each way to break a promise is caught."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.trust.checker import Execution, History, check


def kept() -> History:
    """Two jobs, one of them run again after the one kill."""
    history = History(kills=[15.0], unknown_status=404)
    for job, key in (("a", "1"), ("b", "2")):
        history.accepted[key] += [job]
        history.final[job] = {"status": "done"}
        history.files[job] = True
        history.events[job] = [
            {"type": "queued", "at": 9.0}, {"type": "started", "at": 10.0},
            {"type": "done", "at": 30.0},
        ]  # fmt: skip
    history.executions = [Execution("a", 10), Execution("a", 20), Execution("b", 25)]
    return history


def test_a_kept_history_passes() -> None:
    """One run more for one kill is within the promise."""
    assert check(kept()) == []


def test_a_recorded_rung_is_no_broken_promise() -> None:
    """A repetition for lack of memory passes if the job tells of it, and only then."""
    history = kept()
    history.executions.insert(2, Execution("a", 22))
    assert any(broken.startswith("I4") for broken in check(history))
    history.final["a"]["warnings"] = [{"code": "memory_freed", "message": "Twice."}]
    assert check(history) == []


@pytest.mark.parametrize(
    ("promise", "break_it"),
    [
        ("I1", lambda h: h.final.pop("a")),
        ("I2", lambda h: h.final["a"].update(status="queued")),
        ("I2", lambda h: h.events["a"].append({"type": "failed", "at": 31.0})),
        ("I2", lambda h: h.events["a"].pop()),
        ("I4", lambda h: h.executions.append(Execution("b", 26))),
        ("I4", lambda h: h.executions.append(Execution("a", 31))),
        ("I6", lambda h: h.accepted["1"].append("b")),
        ("I7", lambda h: h.files.update(a=False)),
        ("I9", lambda h: setattr(h, "unknown_status", 200)),
    ],
)  # fmt: skip
def test_a_broken_promise_is_named(promise: str, break_it: Callable[[History], None]) -> None:
    """The sentence begins with the invariant that was broken."""
    history = kept()
    break_it(history)
    assert any(broken.startswith(promise) for broken in check(history))
