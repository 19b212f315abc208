"""The command line with the real daemon and a real engine process, which paints quickly."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from PIL import Image

from vellumd import platform

ENGINE = '''
from PIL import Image
from pydantic import BaseModel

from vellumd import Capabilities, EngineSpec, hookimpl


class Nothing(BaseModel):
    """No settings."""


class Painter:
    def load(self, report):
        return Capabilities(model="painter", device="cpu")

    def edit(self, edit, images, report, cancelled):
        if edit.prompt == "break":
            raise MemoryError
        for n in range(edit.n):
            report.step(n + 1, edit.n, edit.steps, edit.steps)
            yield Image.linear_gradient("L").convert("RGB").resize((24, 18))

    def unload(self):
        pass


def make(init):
    return Painter()


@hookimpl
def vellumd_engines():
    return [EngineSpec("paint", "vellumd_paint:make", Nothing)]
'''

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def environ(folder: Path) -> dict[str, str]:
    """An environment in which the plugin `paint` is installed and chosen."""
    site = folder / "site"
    info = site / "vellumd_paint-1.0.dist-info"
    info.mkdir(parents=True)
    (site / "vellumd_paint.py").write_text(ENGINE)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: vellumd-paint\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[vellumd]\npaint = vellumd_paint\n")
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(site), os.environ["PYTHONPATH"]]),
        "VELLUMD_ENGINE__NAME": "paint",
        "VELLUMD_PLUGINS__PAINT__ENABLED": "true",
        "VELLUMD_PLUGINS__HTTP__PORT": "0",
        "VELLUMD_STORE__DIR": str(folder / "data"),
    }


@pytest.fixture
def vellumd(folder: Path, environ: dict[str, str]) -> Run:
    """Run a command to its end."""

    def command(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "vellumd", *words],
            cwd=folder,
            env=environ,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    return command


def test_the_key_is_found_and_not_shown(
    vellumd: Run, folder: Path, environ: dict[str, str]
) -> None:
    """`serve` shows where the key lies; the commands of its user find it there."""
    (folder / "my key").write_text("s3cret\n")
    environ["VELLUMD_PLUGINS__HTTP__API_KEY_FILE"] = str(folder / "my key")
    with subprocess.Popen(
        [sys.executable, "-m", "vellumd", "serve"],
        cwd=folder,
        env=environ,
        stdout=subprocess.PIPE,
        text=True,
    ) as child:
        assert child.stdout is not None
        told = "".join(child.stdout.readline() for _ in range(5))
        listed = vellumd("jobs")
        child.terminate()
    assert """-H "Authorization: Bearer $(cat 'my key')" """ in told
    assert "s3cret" not in told
    assert listed.returncode == 0, listed.stderr


@pytest.fixture
def daemon(folder: Path, environ: dict[str, str]) -> Iterator[subprocess.Popen[str]]:
    """A daemon that has announced itself, ended as a service manager ends it."""
    with subprocess.Popen(
        [sys.executable, "-m", "vellumd", "serve"],
        cwd=folder,
        env=environ,
        stdout=subprocess.PIPE,
        text=True,
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline().startswith("vellumd ")
        yield child
        child.terminate()
        child.communicate(timeout=30)
    if not platform.WINDOWS:
        assert child.returncode == 0


def test_an_edit_without_daemon(vellumd: Run, folder: Path) -> None:
    """The engine is started for the edits and ended; nothing stays in the data folder."""
    done = vellumd("edit", "a.jpg", "b.jpg", "-p", "x", "--each", "--n", "2")
    assert done.returncode == 0, done.stderr
    for name in ("a-edited_1.jpg", "a-edited_2.jpg", "b-edited_1.jpg", "b-edited_2.jpg"):
        with Image.open(folder / name) as result:
            assert result.size == (24, 18)
    assert "no daemon runs; loading the engine" in done.stderr
    assert not (folder / "data").exists()


def test_a_failed_edit_without_daemon(vellumd: Run) -> None:
    """The job's error is told as with a daemon, and ends with 1."""
    done = vellumd("edit", "a.jpg", "-p", "break")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("vellumd: a.jpg: ")


def test_a_refused_picture_without_daemon(vellumd: Run, folder: Path) -> None:
    """The refusal names the picture; the others are edited all the same."""
    (folder / "c.jpg").write_bytes((folder / "a.jpg").read_bytes()[:-40])
    done = vellumd("edit", "c.jpg", "b.jpg", "-p", "x", "--each")
    assert done.returncode == 1
    assert "vellumd: c.jpg: " in done.stderr
    assert (folder / "b-edited.jpg").is_file()


def test_a_missing_model_without_daemon(vellumd: Run) -> None:
    """It is what is told, before anything is loaded, rather than its missing LoRAs."""
    done = vellumd("edit", "a.jpg", "-p", "x", "--engine.model", "gone")
    assert done.returncode == 1
    assert done.stderr.startswith("vellumd: There is no model 'gone'.")


def test_the_way_through_a_daemon(
    vellumd: Run, daemon: subprocess.Popen[str], folder: Path
) -> None:
    """serve, edit, jobs, doctor: each finds the daemon by the data folder alone."""
    done = vellumd("edit", "a.jpg", "-p", "make it red", "-o", "out.png")
    assert done.returncode == 0, done.stderr
    with Image.open(folder / "out.png") as result:
        assert result.size == (24, 18)
    listed = vellumd("jobs").stdout.split()
    assert listed[1] == "done"
    assert vellumd("jobs", "retry", listed[0]).returncode == 0
    assert len(vellumd("jobs", "--json").stdout.splitlines()) == 2
    assert vellumd("jobs", "delete", listed[0]).stdout == f"{listed[0]} deleted\n"
    assert vellumd("jobs", "show", listed[0]).returncode == 1


def test_a_second_daemon_is_refused(vellumd: Run, daemon: subprocess.Popen[str]) -> None:
    """Two daemons never share a data folder; the second says what to do."""
    second = vellumd("serve")
    assert second.returncode == 78
    assert "--store.dir" in second.stderr
