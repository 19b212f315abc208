"""`python -m vellumd_hotfolder init DIR`, and the settings."""

from __future__ import annotations

import shlex
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.plugins.hotfolder.conftest import OpenDrop, encoded
from vellumd.daemon import Daemon
from vellumd.settings import Settings
from vellumd_hotfolder import watch
from vellumd_hotfolder.__main__ import main
from vellumd_hotfolder.checks import check_roots
from vellumd_hotfolder.names import is_litter, natural
from vellumd_hotfolder.plugin import HotfolderSettings
from vellumd_hotfolder.wire import decode


def test_it_makes_a_folder_that_explains_itself(tmp_path: Path) -> None:
    """The command, as typed: parts, README.txt, the prompt and preset; and what to do next."""
    command = [sys.executable, "-m", "vellumd_hotfolder", "init", str(tmp_path / "f")]
    done = subprocess.run(
        [*command, "--prompt", "snow", "--preset", "눈 😀"],
        capture_output=True, text=True, timeout=30, check=True,
    )  # fmt: skip
    assert "vellumd serve --plugins.hotfolder.root" in done.stdout
    config = done.stdout.partition("vellumd.toml:\n")[2]
    assert tomllib.loads(config) == {"plugins": {"hotfolder": {"root": str(tmp_path / "f")}}}
    assert {p.name for p in (tmp_path / "f").iterdir()} == {
        "README.txt", "inbox", "outbox", "done", "failed",
    }  # fmt: skip
    assert "inbox" in (tmp_path / "f/README.txt").read_text("utf-8")
    assert (tmp_path / "f/inbox/prompt.txt").read_text("utf-8") == "snow\n"
    preset = (tmp_path / "f/inbox/_preset.toml").read_text("utf-8")
    assert tomllib.loads(preset) == {"preset": "눈 😀"}


def test_what_is_printed_can_be_pasted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Into a shell and into TOML, whatever the folder is called."""
    folder = tmp_path / "Anna's $HOME 눈"
    main(["init", str(folder)])
    command, config = capsys.readouterr().out.split("or keep it in config/vellumd.toml:\n")
    assert shlex.split(command.splitlines()[1])[-1] == str(folder)
    assert tomllib.loads(config)["plugins"]["hotfolder"]["root"] == str(folder)


def test_it_changes_nothing_that_is_there(tmp_path: Path) -> None:
    """Twice is once; a file in the way is told."""
    assert main(["init", str(tmp_path), "--prompt", "first"]) == 0
    assert main(["init", str(tmp_path), "--prompt", "second"]) == 0
    assert (tmp_path / "inbox/prompt.txt").read_text("utf-8") == "first\n"
    (tmp_path / "file").touch()
    assert main(["init", str(tmp_path / "file")]) == 1


async def test_such_a_folder_works(drop: OpenDrop, tmp_path: Path) -> None:
    """With the prompt and preset it was made for, and neither is used up."""
    main(["init", str(tmp_path / "f"), "--prompt", "snow", "--preset", "fastest"])
    async with drop(root=tmp_path / "f") as folder:
        folder.put("a.png", encoded(1))
        folder.put("b.png", encoded(2))
        await folder.out("a.png", "b.png")
        asked = {(j.request.prompt, j.request.preset) for j in await folder.jobs()}
        assert asked == {("snow", "fastest")}


async def test_several_folders(drop: OpenDrop, tmp_path: Path) -> None:
    """Each has its own results and its own settings; jobs bear the folder's name."""
    quick = {"settle_s": 0.1, "scan_s": 0.3}
    folders = {name: {"root": str(tmp_path / name), "prompt": name, **quick} for name in ("x", "y")}
    async with drop(prompt="main", folders=folders) as folder:
        folder.put("a.png", encoded(1))
        for name in folders:
            await folder.until((tmp_path / name / "inbox").is_dir, "the inbox")
            (tmp_path / name / "inbox/a.png").write_bytes(encoded(1))
            await folder.until((tmp_path / name / "outbox/a.png").exists, "the result")
        await folder.out("a.png")
        asked = {(j.client_id, j.request.prompt) for j in await folder.jobs()}
        assert asked == {("main", "main"), ("x", "x"), ("y", "y")}


async def test_commands_find_the_daemon_beside_a_folder(
    make_settings: Callable[..., Settings], tmp_path: Path
) -> None:
    """What a daemon announces is where HTTP answers, not where a folder lies."""
    settings = make_settings(http={})
    settings.plugins["hotfolder"] = {"root": str(tmp_path / "root")}
    async with Daemon(settings).running() as daemon:
        assert daemon.urls
        assert all(url.startswith("http://") for url in daemon.urls)


async def test_doctor_looks_at_folders(tmp_path: Path) -> None:
    """Ready, not made yet, its disk away, none at all."""
    main(["init", str(tmp_path / "ready")])

    async def checked(root: Path | None) -> tuple[bool, str]:
        (check,) = await check_roots(HotfolderSettings(root=root))
        return check.ok, check.text

    assert await checked(tmp_path / "ready") == (
        True, "hotfolder main: inbox, outbox, done and failed can be written to",
    )  # fmt: skip
    assert (await checked(tmp_path / "new"))[0]
    ok, text = await checked(tmp_path / "away/new")
    assert not ok
    assert "away" in text
    assert not (await checked(None))[0]


def test_shares_are_polled(tmp_path: Path) -> None:
    """What is said counts; else a local disk is watched."""
    assert watch.polls(tmp_path, "poll")
    assert not watch.polls(tmp_path, "native")
    assert not watch.polls(tmp_path, "auto")


@pytest.mark.parametrize(
    "name",
    [".a.png", "a.jpg.part", "b.TMP", "x.crdownload", "Thumbs.db", "@eaDir", "~$x.png", "a.png~",
     "x.sync-conflict-20260101-120000.png", "desktop.ini"],
)  # fmt: skip
def test_litter(name: str) -> None:
    """What browsers, sync tools, editors and systems leave is nobody's picture."""
    assert is_litter(name)
    assert not is_litter("a.png")
    assert not is_litter("part.jpg")


def test_natural_order() -> None:
    """As people count."""
    assert sorted(["p10", "p2", "P1", "a"], key=natural) == ["a", "P1", "p2", "p10"]


@pytest.mark.parametrize("text", ["café noir", "Straße über", "resumé été", "plain"])
def test_western_texts(text: str) -> None:
    """Western Windows is not taken for Korean."""
    assert decode(text.encode("cp1252"), "utf-8") == text
