"""`vellumd plugins`: what is installed, and the doors of a daemon that may want a key."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from vellumd.cli import main

from .conftest import KEY, Api


def test_what_is_installed_without_a_daemon(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each plugin with its distribution; no doors, since nobody runs."""
    assert main.main(["plugins", "--store.dir", "d"]) == main.OK
    listed = capsys.readouterr().out
    assert "\ntransports: http\n" in listed and "open:" not in listed
    assert any(line.split()[:2] == ["http", "vellumd"] for line in listed.splitlines())


def test_the_doors_are_shown(folder: Path, api: Api, capsys: pytest.CaptureFixture[str]) -> None:
    """Those of the daemon on the data folder, or of the one named."""
    (folder / "d").mkdir()
    (folder / "d/daemon.json").write_text(json.dumps({"pid": 1, "url": api.url}))
    for words in (["--store.dir", "d"], ["--url", api.url]):
        assert main.main(["plugins", *words]) == main.OK
        last = capsys.readouterr().out.splitlines()[-2:]
        assert [line.split(maxsplit=1) for line in last] == [
            ["http", "open: listens"], ["mail", "NOT OPEN: down"],
        ]  # fmt: skip


def test_where_a_key_is_needed_it_says_so(
    folder: Path, api: Api, capsys: pytest.CaptureFixture[str]
) -> None:
    """The doors are not silently left out; with the key they are there."""
    api.key = KEY
    assert main.main(["plugins", "--url", api.url]) == main.FAILED
    told = capsys.readouterr()
    assert "transports: http" in told.out
    assert "(unauthorized)" in told.err and "--key-file" in told.err
    assert main.main(["plugins", "--url", api.url, "--key", KEY]) == main.OK
    assert "http         open: listens" in capsys.readouterr().out
