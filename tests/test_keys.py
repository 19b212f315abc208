"""Named keys: made once, kept as hashes, taken back at once."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
import sys
from pathlib import Path

import pytest

from vellumd import errors, platform
from vellumd.keys import Keyring


def test_a_key_is_told_once_and_kept_as_a_hash(tmp_path: Path) -> None:
    """32 random bytes; the file is its user's alone and does not hold them."""
    file = tmp_path / "data" / "keys.json"
    key = Keyring(file).add("phone")
    assert len(key) >= 43
    assert key not in file.read_text("utf-8")
    if sys.platform != "win32":
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
    (kept,) = Keyring(file).keys
    assert (kept.name, kept.sha256) == ("phone", hashlib.sha256(key.encode()).hexdigest())


def test_two_changes_at_once(tmp_path: Path) -> None:
    """The later one is refused: it would write what it read before the other one's."""
    file = tmp_path / "keys.json"
    lock = platform.FileLock(file.with_suffix(".lock"))
    for change in (Keyring(file).add, Keyring(file).remove):
        with pytest.raises(errors.BadRequest, match="Run it again"):
            change("phone")
    lock.release()
    Keyring(file).add("phone")
    assert [key.name for key in Keyring(file).keys] == ["phone"]


def test_a_ring_sees_what_others_change(tmp_path: Path) -> None:
    """The daemon's ring follows the command line's, there and back."""
    daemon, command = Keyring(tmp_path / "keys.json"), Keyring(tmp_path / "keys.json")
    assert daemon.keys == ()
    for name in ("phone", "laptop"):
        command.add(name)
        assert daemon.keys[-1].name == name
    command.remove("phone")
    assert [key.name for key in daemon.keys] == ["laptop"]
    (tmp_path / "keys.json").unlink()
    assert daemon.keys == ()


@pytest.mark.parametrize("name", ["", " a", "a\nb", "a/b", "x" * 65, "\x1b[31m"])
def test_a_name_is_one(tmp_path: Path, name: str) -> None:
    """What would be no line of a list is refused."""
    with pytest.raises(errors.BadRequest, match="NAME"):
        Keyring(tmp_path / "keys.json").add(name)


def test_a_name_is_taken_once(tmp_path: Path) -> None:
    """Two keys of one name could not be told apart; none of a name cannot be removed."""
    ring = Keyring(tmp_path / "keys.json")
    ring.add("phone")
    with pytest.raises(errors.BadRequest, match="phone"):
        ring.add("phone")
    with pytest.raises(errors.NotFound, match="tablet"):
        ring.remove("tablet")


def test_a_change_that_fails_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a full disk: the keys stay as they were, and no half-written file beside them."""
    ring = Keyring(tmp_path / "keys.json")
    ring.add("phone")
    before = sorted(tmp_path.iterdir())

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="space"):
        ring.add("laptop")
    assert [key.name for key in ring.keys] == ["phone"]
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"keys": [{"name": "a"}]}', "\xff"])
def test_a_damaged_file_opens_nothing(tmp_path: Path, text: str) -> None:
    """It counts neither as no keys, which would open the door, nor as the old ones."""
    (tmp_path / "keys.json").write_text(text, "latin-1")
    with pytest.raises(errors.ConfigError, match="damaged"):
        Keyring(tmp_path / "keys.json").keys  # noqa: B018


def test_an_unreadable_file_names_the_remedy(tmp_path: Path) -> None:
    """As after `sudo vellumd keys add`."""
    (tmp_path / "keys.json").mkdir()
    with pytest.raises(errors.ConfigError, match="as the user"):
        Keyring(tmp_path / "keys.json").keys  # noqa: B018
