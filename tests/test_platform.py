"""Calls that differ between systems."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from vellumd import platform

LIMITS = """
import resource
from vellumd import platform
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 128))
platform.more_files()
platform.more_files()
print(*resource.getrlimit(resource.RLIMIT_NOFILE))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such limit")
def test_as_many_files_as_allowed() -> None:
    """The soft limit becomes the hard one."""
    done = subprocess.run(
        [sys.executable, "-c", LIMITS], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["128", "128"]


def test_a_share_without_fsync_of_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """That a file system has no such call is no fault; that a disk fails is one."""

    def fsync(handle: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", fsync)
    number = errno.EINVAL
    platform.fsync_dir(tmp_path)
    number = errno.EIO
    with pytest.raises(OSError, match="Input/output"):
        platform.fsync_dir(tmp_path)


def test_who_writes_a_file_is_told_where_the_system_can(tmp_path: Path) -> None:
    """Linux tells it of local files; on shares it would take every file for one in use."""
    file = tmp_path / "a"
    with file.open("wb"):
        assert platform.being_written(file)
        assert not platform.being_written(file, on_share=True)
    assert not platform.being_written(file)


@pytest.mark.parametrize(("system", "release", "maps"), [
    ("linux", "6.8.0-51-generic", True),
    ("linux", "5.15.167.4-microsoft-standard-WSL2", False),
    ("win32", "", False),
])  # fmt: skip
def test_which_systems_map_card_memory(
    system: str, release: str, maps: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By what they call themselves."""
    monkeypatch.setattr(sys, "platform", system)
    monkeypatch.setattr(os, "uname", lambda: SimpleNamespace(release=release))
    assert platform.maps_card_memory() is maps
