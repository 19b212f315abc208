"""The command line itself: finding commands, settings, exit codes, speed, consoles."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from vellumd.cli import main

ROOT = Path(__file__).parents[2]


def python(*words: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """Run the interpreter with `words` from the repository."""
    return subprocess.run(
        [sys.executable, *words],
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        cwd=ROOT,
        env={**os.environ, **environ},
        timeout=60,
        check=False,
    )


def test_settings_are_told_from_words() -> None:
    """`--a.b VALUE` and `--a.b=VALUE` anywhere are settings; after `--` nothing is."""
    words, settings = main.split_settings(
        ["edit", "--store.dir", "x", "a.jpg", "--presets.p-1.prompt=a=b", "-p", "hi", "--", "--c.d"]
    )
    assert words == ["edit", "a.jpg", "-p", "hi", "--", "--c.d"]
    assert settings == [("store.dir", "x"), ("presets.p-1.prompt", "a=b")]


def test_a_setting_needs_a_value(capsys: pytest.CaptureFixture[str]) -> None:
    """A setting without value ends with 78 and the remedy."""
    assert main.main(["serve", "--store.dir"]) == main.CONFIG
    assert "--store.dir needs a value" in capsys.readouterr().err


def test_a_wrong_setting_ends_with_78(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A configuration error goes to standard error, names the key, and exits 78."""
    assert main.main(["serve", "--engine.modle", "x"]) == 78
    assert "vellumd: engine.modle (--engine.modle)" in capsys.readouterr().err


@pytest.mark.parametrize("argv", [[], ["sing"], ["--sing"], ["serve", "--sing"], ["edit"]])
def test_a_wrong_command_line_ends_with_2(argv: list[str]) -> None:
    """Unknown commands and arguments are usage errors; nothing is abbreviated."""
    with pytest.raises(SystemExit) as caught:
        main.main(argv)
    assert caught.value.code == main.USAGE


@pytest.mark.parametrize("command", list(main.COMMANDS))
def test_every_command_has_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Each listed command exists, in a module of its own name, and explains itself."""
    with pytest.raises(SystemExit) as caught:
        main.main([command, "--help"])
    assert caught.value.code == 0
    assert capsys.readouterr().out.startswith(f"usage: vellumd {command}")
    assert (ROOT / f"vellumd/cli/{command}.py").is_file()


def test_help_lists_commands_and_exit_codes() -> None:
    """`python -m vellumd --help` shows all that can be called and all that can come back."""
    done = python("-m", "vellumd", "--help")
    assert done.returncode == 0
    for name in main.COMMANDS:
        assert f"\n  {name} " in done.stdout
    for code, text in main.EXIT_CODES.items():
        assert f"\n  {code:<4} {text}" in done.stdout


def test_help_imports_nothing_heavy() -> None:
    """Parsing needs neither pydantic nor asyncio nor anything of the engine."""
    code = (
        "import sys; from vellumd.cli import main\n"
        "try: main.main(['--help'])\n"
        "except SystemExit: pass\n"
        "print('|', *sorted({name.partition('.')[0] for name in sys.modules}))"
    )
    loaded = set(python("-c", code).stdout.rpartition("|")[2].split())
    assert "argparse" in loaded
    assert not loaded & {"pydantic", "pydantic_settings", "asyncio", "aiohttp", "torch", "PIL"}


@pytest.mark.parametrize("encoding", ["cp949", "cp1252", "ascii"])
def test_output_survives_code_pages(encoding: str, tmp_path: Path) -> None:
    """A character that the console lacks is replaced, never a crash."""
    done = python(
        "-m", "vellumd", "edit", str(tmp_path / "größe-画像-🎨.png"), PYTHONIOENCODING=encoding
    )
    assert done.returncode == main.FAILED
    assert "There is no picture" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_missing_configuration_file_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    """A named file is never passed over: exit code 78, and what to do."""
    assert main.main(["plugins", "--config", "nowhere.toml"]) == 78
    assert "no configuration file 'nowhere.toml'" in capsys.readouterr().err
