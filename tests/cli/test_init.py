"""`vellumd init`: a configuration to start from."""

from __future__ import annotations

from pathlib import Path

import pytest

from vellumd import sources
from vellumd.cli import main
from vellumd.settings import Settings


def test_init_writes_a_configuration_that_changes_nothing(folder: Path) -> None:
    """The file is found from DIR by itself and loads to the defaults."""
    assert main.main(["init", "new"]) == main.OK
    loaded = sources.load(cwd=folder / "new", environ={})
    assert loaded.sources == [str(folder / "new/config/vellumd.toml")]
    assert loaded.settings.model_copy(update={"plugins": {}}) == Settings()


def test_init_never_overwrites(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An existing file stays as it is, and the command says so."""
    (folder / "config").mkdir()
    (folder / "config/vellumd.toml").write_text("mine")
    assert main.main(["init", "."]) == main.FAILED
    assert "left as it is" not in capsys.readouterr().out
    assert (folder / "config/vellumd.toml").read_text() == "mine"
