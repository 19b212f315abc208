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
    assert lines[0] == "@echo off"
    if 'call "%~dp0run.bat" %*' not in lines:
        assert "setlocal" in lines and 'cd /d "%~dp0..\\.."' in lines
    opened = sum(line.rstrip().endswith("(") for line in lines)
    assert opened == sum(line.strip() == ")" for line in lines)
    labels = {line[1:] for line in lines if line.startswith(":")}
    assert set(re.findall(r"goto (\w+)", "\n".join(lines))) == labels
    assert lines[-1].startswith("exit /b ")


@pytest.mark.parametrize(
    ("name", "commands", "added"),
    [
        ("run", ["serve"], ["%*"]),
        ("doctor", ["doctor"], ["%*"]),
        ("start_worker", ["jobs", "serve"], ["%QUEUE%"]),
    ],
)
def test_they_call_what_exists(name: str, commands: list[str], added: list[str]) -> None:
    """Each command line is one that vellumd understands; what the user adds comes last."""
    text = (ROOT / f"config/windows/{name}.bat").read_text("ascii")
    calls = re.findall(r"^\.venv\\Scripts\\vellumd\.exe ([^>\n]+)", text, re.MULTILINE)
    assert [call.split()[0] for call in calls] == commands
    assert [word for word in calls[-1].split() if "%" in word] == added
    for call in calls:
        known, settings = main.split_settings([w for w in call.split() if w not in added])
        assert settings == [("store.dir", "data")]
        parser = main.command_parser(known[0], main.load_command(known[0]))
        assert parser.parse_args(known[1:]).config == Path("config\\vellumd.toml")


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.name)
def test_they_call_each_other(script: Path) -> None:
    """A script that another one names is there."""
    for name in re.findall(r"(?:~dp0|\b)(\w+\.bat)", script.read_text("ascii")):
        assert (script.parent / name).exists()


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.name)
def test_their_variables_are_no_settings(script: Path) -> None:
    """vellumd refuses to start beside a VELLUMD_ variable that is none of its keys."""
    assert not re.findall(r"VELLUMD_\w+", script.read_text("ascii"))


def test_the_worker_knows_that_the_daemon_polls() -> None:
    """It asks for a running daemon first, and then starts nothing."""
    text = (ROOT / "config/windows/start_worker.bat").read_text("ascii")
    asks, leaves = text.index("vellumd.exe jobs"), text.index("exit /b 0")
    assert asks < leaves < text.index("vellumd.exe serve")
    assert "--plugins.queue.url" in text


def test_setup_installs_as_make_does() -> None:
    """Interpreter, torch for the machine, extra `engine`: the same as the Makefile's."""
    text = (ROOT / "config/windows/setup.bat").read_text("ascii")
    for part in ("(3, 11)", "-m venv .venv", "-m vellumd.cli.setup_torch", "vellumd[engine]"):
        assert part in text
    makefile = (ROOT / "Makefile").read_text("ascii")
    assert "(3, 11)" in makefile and "-m vellumd.cli.setup_torch" in makefile
