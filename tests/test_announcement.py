"""What a daemon tells commands on its machine."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from vellumd import announcement
from vellumd.announcement import FILE, Announcement


@pytest.mark.parametrize("key_file", [None, Path("key").absolute()])
def test_what_was_written_is_read(tmp_path: Path, key_file: Path | None) -> None:
    """And it is taken back by the process that wrote it."""
    told = Announcement(os.getpid(), "http://127.0.0.1:8200", key_file)
    announcement.write(tmp_path, told)
    assert announcement.read(tmp_path) == told
    announcement.take_back(tmp_path)
    assert announcement.read(tmp_path) is None


@pytest.mark.parametrize(
    "text", ["", "[]", "3", "{}", '{"url": "http://x"}', '{"pid": [], "url": 1}']
)
def test_what_cannot_be_understood_is_none(tmp_path: Path, text: str) -> None:
    """A file of somebody else's, or a torn one, costs no command a traceback."""
    (tmp_path / FILE).write_text(text)
    assert announcement.read(tmp_path) is None
    announcement.take_back(tmp_path)
    assert (tmp_path / FILE).exists()
