"""Answers that nobody has received yet are remembered, not too many."""

from __future__ import annotations

from pathlib import Path

from vellumd_http.unanswered import Unanswered


def test_unanswered_outlive_the_process_and_stay_few(tmp_path: Path) -> None:
    """What was expected is found again, newest first kept; what was received is gone."""
    before = Unanswered(tmp_path / "u")
    for number in range(Unanswered.MOST + 5):
        before.expect(f"{number:064x}", f"job-{number}")
    before.received(f"{50:064x}", "another job")
    before.received(f"{60:064x}", "job-60")
    after = Unanswered(tmp_path / "u")
    assert after.job_of(f"{50:064x}") == "job-50"
    assert after.job_of(f"{60:064x}") is None
    assert after.job_of(f"{0:064x}") is None
    assert after.job_of(f"{Unanswered.MOST + 4:064x}") == f"job-{Unanswered.MOST + 4}"
    assert len(list((tmp_path / "u").iterdir())) == Unanswered.MOST - 1


def test_what_others_leave_among_the_notes_is_none(tmp_path: Path) -> None:
    """A folder or a file of another name stops no door and stays."""
    (tmp_path / "u" / ".thumbnails").mkdir(parents=True)
    (tmp_path / "u" / "desktop.ini").write_bytes(b"\xff")
    assert Unanswered(tmp_path / "u").job_of("desktop.ini") is None
    assert len(list((tmp_path / "u").iterdir())) == 2


def test_a_torn_note_of_an_answer_counts_as_none(tmp_path: Path) -> None:
    """A power cut can leave a note empty; then the same request simply is a new job."""
    folder = tmp_path / "u"
    folder.mkdir()
    (folder / f"{1:064x}").write_bytes(b"")
    assert Unanswered(folder).job_of(f"{1:064x}") is None
