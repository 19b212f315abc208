"""`vellumd keys`: the key on stdout, this once; the rest where people read."""

from __future__ import annotations

from pathlib import Path

import pytest

from vellumd.cli import main
from vellumd.keys import Keyring


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The data folder, and a working directory without configuration."""
    monkeypatch.chdir(tmp_path)
    return tmp_path / "data"


def keys(*words: str) -> int:
    return main.main(["keys", *words, "--store.dir", "data"])


def test_add_list_remove(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`vellumd keys add phone > phone.key` holds the key and nothing else."""
    assert keys("add", "phone") == main.OK
    told = capsys.readouterr()
    key = told.out.removesuffix("\n")
    assert len(key.split()) == 1
    assert key not in told.err
    assert str(folder) in told.err
    assert keys() == main.OK
    listed = capsys.readouterr().out
    assert listed.startswith("phone ") and key not in listed
    assert keys("remove", "phone") == main.OK
    assert Keyring(folder / "keys.json").keys == ()


def test_a_folder_without_a_daemon_is_told(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A key for the wrong folder opens nothing, and nobody would know why."""
    keys("add", "phone")
    assert "none has run yet; --store.dir" in capsys.readouterr().err
    keys("add", "laptop")
    assert "none has run yet" not in capsys.readouterr().err


def test_what_cannot_be_done_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    """No name, an unknown one, one that is taken."""
    assert keys("add") == main.FAILED
    assert "vellumd keys add NAME" in capsys.readouterr().err
    assert keys("remove", "phone") == main.FAILED
    assert "phone" in capsys.readouterr().err
    keys("add", "phone")
    assert keys("add", "phone") == main.FAILED
