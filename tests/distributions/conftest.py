"""A stranger's distribution, built and installed as its users do, where only tests see it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

LINES = Path(__file__).parent / "lines"


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder into which pip has installed the wheel of `lines`: no network, no isolation."""
    folder = tmp_path_factory.mktemp("site")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input", "install"]
    options = ["--quiet", "--no-index", "--no-deps", "--no-build-isolation", "--target"]
    subprocess.run([*pip, *options, str(folder), str(LINES)], check=True, timeout=120)
    return folder


@pytest.fixture(autouse=True)
def installed(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the processes of a test see what is installed."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(site), os.environ["PYTHONPATH"]]))
