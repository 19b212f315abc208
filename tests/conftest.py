"""Fixtures for all tests: a daemon on real sockets and files, with a torch-free engine."""

from __future__ import annotations

import gc
import io
import json
import os
import sys
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from vellumd.daemon import Daemon
from vellumd.settings import Settings


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--full", action="store_true", help="full counts instead of a tenth")


def pytest_collection(session: pytest.Session) -> None:
    """While modules and tests are loaded nothing is garbage."""
    gc.disable()


def pytest_collection_finish(session: pytest.Session) -> None:
    """All that is loaded stays: a look through torch and 4,000 tests would find no garbage."""
    gc.freeze()
    gc.enable()


@pytest.fixture(scope="session")
def full(request: pytest.FixtureRequest) -> bool:
    """Whether full counts are wanted (`make trust`)."""
    return bool(request.config.getoption("--full"))


RESULTS = Path(__file__).parent / "trust" / "results"
Record = Callable[[str, dict[str, Any]], None]


@pytest.fixture
def record(
    request: pytest.FixtureRequest, full: bool, capsys: pytest.CaptureFixture[str]
) -> Record:
    """`record(name, figures)` tells figures, and keeps those of full counts as NAME.json.

    Full counts take hours, so theirs are told at once; others when all tests are over.
    """

    def record(name: str, figures: dict[str, Any]) -> None:
        text = f"{name}: {json.dumps(figures)}"
        if not full:
            request.node.user_properties.append(("figures", text))
            return
        with capsys.disabled():
            print(f"\n{text}")
        kept = {"at": datetime.now().astimezone().isoformat(), **figures}
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / f"{name}.json").write_text(json.dumps(kept, indent=1) + "\n")

    return record


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """The figures of all tests, with their seeds."""
    reports = [report for same in terminalreporter.stats.values() for report in same]
    told = [
        text
        for report in reports
        if getattr(report, "when", "") == "call"
        for name, text in report.user_properties
        if name == "figures"
    ]
    if told:
        terminalreporter.section("figures")
        terminalreporter.write_line("\n".join(told))


PAPER = Path(__file__).parent / "fixtures" / "paper_engine"


@pytest.fixture(scope="session", autouse=True)
def paper_engine() -> None:
    """Make the paper engine an installed plugin, here and in every child process."""
    sys.path.insert(0, str(PAPER))
    known = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = f"{PAPER}{os.pathsep}{known}" if known else str(PAPER)


@pytest.fixture
def make_settings(tmp_path: Path) -> Callable[..., Settings]:
    """Settings with the paper engine and a store of their own; arguments are sections.

    `paper` goes to the engine, `http` to the HTTP transport (off by default).
    """

    def make(
        paper: dict[str, Any] | None = None, http: dict[str, Any] | None = None, **sections: Any
    ) -> Settings:
        fields: dict[str, Any] = {
            "store": {"dir": tmp_path / "data"},
            "plugins": {
                "paper": {"ledger": str(tmp_path / "ledger"), **(paper or {})},
                "http": {"port": 0, **http} if http is not None else {"enabled": False},
            },
            **sections,
        }
        fields["engine"] = {"name": "paper", **fields.get("engine", {})}
        return Settings.model_validate(fields)

    return make


@pytest.fixture
def run_daemon(
    make_settings: Callable[..., Settings],
) -> Callable[..., AbstractAsyncContextManager[Daemon]]:
    """`async with run_daemon(**sections) as daemon`: one that runs, doors open."""
    return lambda **sections: Daemon(make_settings(**sections)).running()


@pytest.fixture
def picture() -> Callable[..., bytes]:
    """A PNG in one colour; each `tone` is another picture."""

    def make(tone: int = 200, size: tuple[int, int] = (64, 48), format: str = "PNG") -> bytes:
        buffer = io.BytesIO()
        Image.new("RGB", size, (tone % 256, (tone * 7) % 256, (tone // 256) % 256)).save(
            buffer, format
        )
        return buffer.getvalue()

    return make


@pytest.fixture
def ledger(tmp_path: Path) -> Callable[[], list[str]]:
    """Job ids in the order in which the engine executed them."""
    file = tmp_path / "ledger"
    return lambda: (
        [line.split()[0] for line in file.read_text().splitlines()] if file.exists() else []
    )
