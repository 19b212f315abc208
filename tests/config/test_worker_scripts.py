"""What comes from the predecessor's days: its scripts' names, and what the containers say."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from vellumd.cli import main

ROOT = Path(__file__).parents[2]
SCRIPTS = ("start_server", "start_worker", "install_task")


def script(name: str) -> str:
    """The text of a batch file, which has to be ASCII with CR LF."""
    data = (ROOT / f"config/windows/{name}.bat").read_bytes()
    assert data.count(b"\r\n") == data.count(b"\n") == data.count(b"\r")
    return data.decode("ascii").replace("\r\n", "\n")


@pytest.mark.parametrize("name", SCRIPTS)
def test_blocks_and_labels(name: str) -> None:
    """Parentheses of blocks match, every goto has its label, an exit code is given back."""
    lines = script(name).splitlines()
    assert lines[0] == "@echo off" and "setlocal" in lines
    assert sum(line.endswith("(") for line in lines) == sum(line.strip() == ")" for line in lines)
    labels = {line[1:] for line in lines if line.startswith(":")}
    assert set(re.findall(r"goto (\w+)", "\n".join(lines))) == labels
    assert lines[-1].startswith("exit /b ")


@pytest.mark.parametrize("name", ["start_server", "start_worker"])
def test_they_call_what_exists(name: str) -> None:
    """Every command line is one that vellumd understands."""
    calls = re.findall(r"^\.venv\\Scripts\\vellumd\.exe ([^>\n]+)", script(name), re.MULTILINE)
    assert calls
    for call in calls:
        words = [word for word in call.split() if "%" not in word]
        known, settings = main.split_settings(words)
        assert settings == [("store.dir", "data")]
        parser = main.command_parser(known[0], main.load_command(known[0]))
        assert parser.parse_args(known[1:]).config == Path("config\\vellumd.toml")


def test_the_worker_knows_that_the_daemon_polls() -> None:
    """It asks for a running daemon first, and then starts nothing."""
    text = script("start_worker")
    assert (
        text.index("vellumd.exe jobs") < text.index("exit /b 0") < text.index("vellumd.exe serve")
    )
    assert "--plugins.queue.url" in text


@pytest.mark.parametrize("name", ["compose.yaml", "Dockerfile"])
def test_what_was_not_run_says_so(name: str) -> None:
    """The container files are marked."""
    assert "UNTESTED" in (ROOT / "config/docker" / name).read_text("ascii")


def test_both_languages_tell_the_same() -> None:
    """The Korean page has the English one's sections, commands, keys and links."""
    english = (ROOT / "docs/migration.md").read_text("utf-8")
    korean = (ROOT / "docs/migration.ko.md").read_text("utf-8")

    def code(page: str) -> list[str]:
        return sorted(set(re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", page, flags=re.S))))

    assert [line.count("#") for line in re.findall(r"^#+ ", english, re.MULTILINE)] == [
        line.count("#") for line in re.findall(r"^#+ ", korean, re.MULTILINE)
    ]
    assert code(english) == code(korean)
    assert re.findall(r"```\w*\n(.*?)```", english, re.S) == re.findall(
        r"```\w*\n(.*?)```", korean, re.S
    )
    links = [
        sorted(set(re.findall(r"\]\((?!migration)([^)]+)\)", page))) for page in (english, korean)
    ]
    assert links[0] == links[1]
