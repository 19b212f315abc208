"""Node-RED in the versions that are asked for, with vellumd's own node installed in it."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.node_red import ROOT, NodeRed
from tests.plugins.mqtt.broker import Broker


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Each test that needs a Node-RED, with each of them: 5 under `--full` only."""
    if "version" in metafunc.fixturenames:
        full = metafunc.config.getoption("--full")
        metafunc.parametrize("version", ["4", "5"] if full else ["4"], scope="session")


@pytest.fixture(scope="session")
def palette(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A node_modules folder with the package as it is published."""
    return install(tmp_path_factory.mktemp("palette"))


def install(folder: Path) -> Path:
    """Let npm install the package in `folder`; its node_modules."""
    (folder / "package.json").write_text('{"private": true}')
    source = ROOT / "config" / "node-red" / "palette"
    packed = subprocess.run(
        ["npm", "pack", "--silent", str(source)],
        cwd=folder, check=True, stdout=subprocess.PIPE, text=True, timeout=60,
    ).stdout.strip()  # fmt: skip
    command = ["npm", "install", "--silent", "--offline", "--no-audit", "--no-fund"]
    subprocess.run([*command, f"./{packed}"], cwd=folder, check=True, timeout=60)
    return folder / "node_modules"


@pytest.fixture(scope="session")
def installed(
    tmp_path_factory: pytest.TempPathFactory, palette: Path, version: str
) -> Iterator[NodeRed]:
    """A Node-RED for all tests of a version: to start one takes seconds."""
    made = NodeRed(tmp_path_factory.mktemp("node-red"), version, palette)
    yield made
    made.close()


@pytest.fixture
def node_red(installed: NodeRed) -> NodeRed:
    """A running Node-RED without flows, that has said nothing yet."""
    installed.clear()
    return installed


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Broker]:
    made = Broker(tmp_path)
    yield made
    made.close()
