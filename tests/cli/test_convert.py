"""`vellumd convert`: what it has the engine's process do, and how that ended."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from vellumd.cli import main


@pytest.fixture
def ended(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Commands that were run, as `argv`; each ends with `code`."""
    found: dict[str, Any] = {"code": 0}

    def run(argv: list[str], *, check: bool) -> subprocess.CompletedProcess[bytes]:
        found["argv"] = argv
        return subprocess.CompletedProcess(argv, found["code"])

    monkeypatch.setattr(subprocess, "run", run)
    return found


@pytest.mark.parametrize("name", ["demo", "qwen-image-edit-2511"])
def test_a_model_by_name(ended: dict[str, Any], name: str) -> None:
    """Names that `engine.model` knows are no paths."""
    assert main.main(["convert", name]) == main.OK
    assert json.loads(ended["argv"][-1])["engine"]["model"] == name


def test_a_model_by_path(
    ended: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Relative to where the command is typed."""
    monkeypatch.chdir(tmp_path)
    assert main.main(["convert", "model", "made", "--lora", "lightning-8=0.5"]) == main.OK
    wanted = json.loads(ended["argv"][-1])
    assert Path(wanted["engine"]["model"]) == tmp_path / "model"
    assert Path(wanted["target"]) == tmp_path / "made"
    assert wanted["loras"] == [["lightning-8", 0.5]]


def test_a_process_that_was_killed(
    ended: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    """It could not say so itself, as where Linux ran out of memory."""
    ended["code"] = -9
    assert main.main(["convert", "demo"]) == main.FAILED
    said = capsys.readouterr().err
    assert "ended by signal 9" in said and "goes on where it was" in said
