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


def test_init_writes_every_template(folder: Path) -> None:
    """Unit and scripts come with it, byte for byte: line ends matter to Windows."""
    assert main.main(["init", "new"]) == main.OK
    source = Path(__file__).parents[2] / "config"
    wanted = {f.relative_to(source): f.read_bytes() for f in source.rglob("*") if f.is_file()}
    written = Path("new/config")
    found = {f.relative_to(written): f.read_bytes() for f in written.rglob("*") if f.is_file()}
    assert found == wanted
    assert {"vellumd.toml", "systemd/vellumd.service", "windows/run.bat"} <= {
        name.as_posix() for name in found
    }


def test_init_never_overwrites(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An existing file stays as it is, and the command says so; the others are written."""
    (folder / "config").mkdir()
    (folder / "config/vellumd.toml").write_text("mine")
    assert main.main(["init", "."]) == main.FAILED
    said = capsys.readouterr()
    assert "vellumd.toml existed already and was left as it is" in said.err
    assert "vellumd.service written" in said.out
    assert (folder / "config/vellumd.toml").read_text() == "mine"


def test_init_takes_no_settings(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It reads none, so one is a mistake, and its help offers none."""
    with pytest.raises(SystemExit) as ended:
        main.main(["init", "new", "--store.dir", "x"])
    assert ended.value.code == main.USAGE and not (folder / "new").exists()
    assert "--store.dir" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main.main(["init", "--help"])
    said = capsys.readouterr().out
    assert "SECTION.KEY" not in said and "Windows scripts" in said
