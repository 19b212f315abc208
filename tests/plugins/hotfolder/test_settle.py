"""The stability tracker: pure, so time and files are just numbers."""

from __future__ import annotations

from vellumd_hotfolder.settle import StabilityTracker


def tracker() -> StabilityTracker:
    return StabilityTracker(settle_s=2, incomplete_s=60)


def test_a_file_settles_after_its_last_change() -> None:
    """Two seconds from the last change that was seen, not from the first sight."""
    files = tracker()
    files.look({"a": 1}, 0)
    files.look({"a": 2}, 1.5)
    assert files.settled(3.4) == []
    assert files.due() == 3.5
    files.look({"a": 2}, 3.4)
    assert files.settled(3.5) == ["a"]


def test_what_is_gone_is_forgotten() -> None:
    """A file of the same name that comes later has to settle anew."""
    files = tracker()
    files.look({"a": 1}, 0)
    files.look({}, 1)
    assert len(files) == 0
    assert files.due() is None
    files.look({"a": 1}, 10)
    assert files.settled(11.9) == []
    assert files.settled(12) == ["a"]


def test_what_is_not_whole_is_asked_for_again_until_its_time_is_over() -> None:
    """Sixty seconds from when it settled; a change in between begins all anew."""
    files = tracker()
    files.look({"a": 1}, 0)
    assert not files.incomplete("a", 2)
    assert files.settled(7.9) == []
    assert files.settled(8) == ["a"]
    assert not files.incomplete("a", 61.9)
    assert files.due() == 62
    assert files.incomplete("a", 62)
    files.look({"a": 2}, 63)
    assert files.settled(64.9) == []
    assert not files.incomplete("a", 65)


def test_what_is_in_hand_is_asked_for_later_and_without_end() -> None:
    """A file that somebody has open is no failure, however long it takes."""
    files = tracker()
    files.look({"a": 1}, 0)
    for now in range(2, 2000, 2):
        assert files.settled(now) == ["a"]
        files.postpone("a", now)
        assert files.settled(now + 1.9) == []


def test_what_is_parked_waits_for_a_change() -> None:
    """A picture without a prompt costs nothing until its prompt comes."""
    files = tracker()
    files.look({"a": 1, "b": 1}, 0)
    files.park("a")
    assert files.settled(1000) == ["b"]
    assert files.parked() == ["a"]
    files.look({"a": 2, "b": 1}, 1000)
    assert files.parked() == []
    assert files.settled(1002) == ["a", "b"]


def test_what_was_taken_is_another_file_when_it_comes_again() -> None:
    """The same name and look settle once more."""
    files = tracker()
    files.look({"a": 1}, 0)
    files.forget("a")
    files.look({"a": 1}, 5)
    assert files.settled(6.9) == []
    assert files.settled(7) == ["a"]
