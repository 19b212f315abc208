"""The batch files: as Windows reads them, and calling what exists."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from vellumd.cli import main

ROOT = Path(__file__).parents[2]
SCRIPTS = sorted((ROOT / "config/windows").glob("*.bat"))


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.name)
def test_bytes(script: Path) -> None:
    """ASCII in every code page, and each line ends in CR LF: others break labels and blocks."""
    data = script.read_bytes()
    assert data.isascii() and data.endswith(b"\r\n")
    assert data.count(b"\r\n") == data.count(b"\n") == data.count(b"\r")


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.name)
def test_git_keeps_the_line_ends(script: Path) -> None:
    """.gitattributes has every checkout end its lines so."""
    told = subprocess.run(
        ["git", "check-attr", "eol", "--", script.relative_to(ROOT).as_posix()],
        cwd=ROOT, capture_output=True, text=True, timeout=20, check=False,
    )  # fmt: skip
    rule = (ROOT / ".gitattributes").read_text("ascii")
    assert "*.bat text eol=crlf" in rule
    assert told.returncode != 0 or told.stdout.strip().endswith("eol: crlf")


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.name)
def test_blocks_and_labels(script: Path) -> None:
    """Parentheses of blocks match, every goto has its label, and an exit code is given back."""
    lines = script.read_text("ascii").splitlines()
    assert lines[0] == "@echo off" and "setlocal" in lines
    assert 'cd /d "%~dp0..\\..' in script.read_text("ascii")
    opened = sum(line.rstrip().endswith("(") for line in lines)
    assert opened == sum(line.strip() == ")" for line in lines)
    labels = {line[1:] for line in lines if line.startswith(":")}
    assert set(re.findall(r"goto (\w+)", "\n".join(lines))) == labels
    assert lines[-1].startswith("exit /b ")


@pytest.mark.parametrize(("name", "command"), [("run", "serve"), ("doctor", "doctor")])
def test_they_call_what_exists(name: str, command: str) -> None:
    """The command line is one that vellumd understands, and what the user adds follows it."""
    text = (ROOT / f"config/windows/{name}.bat").read_text("ascii")
    ((line,),) = [re.findall(r"^\.venv\\Scripts\\vellumd\.exe (.+)$", text, re.MULTILINE)]
    *words, rest = line.split()
    assert rest == "%*"
    known, settings = main.split_settings(words)
    assert known[0] == command and settings == [("store.dir", "data")]
    parser = main.command_parser(command, main.load_command(command))
    assert parser.parse_args(known[1:]).config == Path("config\\vellumd.toml")


def test_setup_installs_as_make_does() -> None:
    """Interpreter, torch for the machine, extra `engine`: the same as the Makefile's."""
    text = (ROOT / "config/windows/setup.bat").read_text("ascii")
    for part in ("(3, 11)", "-m venv .venv", "-m vellumd.cli.setup_torch", "vellumd[engine]"):
        assert part in text
    makefile = (ROOT / "Makefile").read_text("ascii")
    assert "(3, 11)" in makefile and "-m vellumd.cli.setup_torch" in makefile
