"""`vellumd doctor`: its table, its JSON, its exit code, its golden edit."""

from __future__ import annotations

import asyncio
import json
import shutil
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from vellumd import local, model_card, plugins, sources
from vellumd.cli import checks, doctor, golden, main
from vellumd.hookspecs import Check, TransportSpec
from vellumd.models import ErrorInfo
from vellumd.plugins import Plugins
from vellumd.settings import Settings, StoreSettings
from vellumd.sources import Loaded

SAMPLES = model_card.DEMO_FOLDER / "samples"


def run(*words: str) -> int:
    """Doctor with a data folder that is not there yet and a port the system chooses."""
    settings = ("--store.dir", "data", "--plugins.http.port", "0", "--store.reserve_gb", "0")
    return main.main(["doctor", *settings, *words])


def loaded(folder: Path, **fields: Any) -> Loaded:
    """Settings with a data folder, as they come out of their sources."""
    store = StoreSettings(dir=folder)
    return Loaded(Settings(store=store, **fields), ["a note"], ["environment"])


def test_a_table_for_people(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A line a check with what it is about; the last one counts; exit code 0 if all is well."""
    assert run() == main.OK
    *rows, last = capsys.readouterr().out.splitlines()
    assert {row.split()[0] for row in rows} == {"ok"}
    assert {row.split()[1] for row in rows} == {
        "settings", "packages", "data", "model", "daemon", "card",
    }  # fmt: skip
    assert last == f"{len(rows)} checks, 0 to mend"
    assert not Path("data").exists()


@pytest.fixture
def no_card(monkeypatch: pytest.MonkeyPatch) -> None:
    """Spares the seconds in which torch looks for a card."""
    monkeypatch.setattr(checks, "card", lambda: [Check(True, "not looked for")])


@pytest.mark.usefixtures("no_card")
def test_json_for_machines(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One object with the same findings; a fault is told there and by the exit code."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        assert run("--json", "--plugins.http.port", port, "--engine.model", "gone") == main.FAILED
    told = json.loads(capsys.readouterr().out)
    wrong = {check["about"]: check["text"] for check in told["checks"] if not check["ok"]}
    assert wrong.keys() == {"model", "plugins"}
    assert "There is no model 'gone'" in wrong["model"]
    assert f"another program has port {port}" in wrong["plugins"]
    assert told["failed"] == 2


def test_sources_and_notes_are_told(tmp_path: Path) -> None:
    """Which sources were read, weakest first, and what was noticed in them."""
    found = [check.text for check in doctor.sources(loaded(tmp_path))]
    assert found == ["from environment", "note: a note"]
    (default,) = doctor.sources(sources.Loaded(Settings(), [], []))
    assert default.text == "from the defaults"


def test_a_check_that_breaks_off_is_a_finding(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A plugin's check that raises, exits, hangs or gives junk harms no other and is told."""

    async def raises(settings: Any) -> list[Check]:
        raise ZeroDivisionError

    async def exits(settings: Any) -> list[Check]:
        sys.exit(0)

    async def hangs(settings: Any) -> list[Check]:
        await asyncio.Event().wait()
        return []

    async def junk(settings: Any) -> Any:
        return ["fine"]

    async def right(settings: Any) -> list[Check]:
        return [Check(True, "fine")]

    checks = (raises, exits, hangs, junk, right)
    spec = plugins.load(Settings().enabled_plugins()).transports["http"]
    specs = {"http": TransportSpec("http", spec.settings_model, spec.factory, checks)}
    monkeypatch.setattr(plugins, "load", lambda names: Plugins((), specs, {}, ()))
    monkeypatch.setattr(doctor, "CHECK_S", 0.05)
    *broken, last = doctor.of_plugins(Settings(store=StoreSettings(dir=tmp_path)))
    assert last == Check(True, "fine") and len(broken) == 4
    assert all("http: its check broke off" in one.text and not one.ok for one in broken)


def test_doctor_imports_no_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All checks together leave torch out of this process."""
    monkeypatch.delitem(sys.modules, "torch", raising=False)  # other tests may have imported it
    found = list(doctor.examine(loaded(tmp_path)))
    assert ("daemon", "none runs on this data folder") in [(a, check.text) for a, check in found]
    assert "torch" not in sys.modules


async def test_the_golden_edit_is_right() -> None:
    """The real demo makes the example's circle blue, and nothing is left behind."""
    found = await golden.edit()
    assert found.ok, found.text
    assert found.text.startswith("the demo edits rightly")


@dataclass
class Ended:
    """A job that ended."""

    error: ErrorInfo | None = None


class Engine:
    """A session whose edits give the same picture, or fail."""

    def __init__(self, picture: Path, error: ErrorInfo | None) -> None:
        self._given = Ended(error), [picture]

    async def edit(self, pictures: list[Path], options: dict[str, Any]) -> Any:
        return self._given


@pytest.mark.parametrize(
    ("picture", "error", "says"),
    [
        ("shapes.png", None, "edit is wrong"),
        ("backdrop.png", None, "edit is wrong"),
        ("star.png", None, "edit is wrong"),
        ("shapes-blue.png", ErrorInfo(code="internal", message="It broke.", retryable=False),
         "failed: It broke."),
    ],
)  # fmt: skip
async def test_a_wrong_golden_edit_is_seen(
    monkeypatch: pytest.MonkeyPatch, picture: str, error: ErrorInfo | None, says: str
) -> None:
    """The input itself, another picture and a failure are no right edit."""

    @asynccontextmanager
    async def session(settings: Settings) -> AsyncIterator[Engine]:
        yield Engine(SAMPLES / picture, error)

    monkeypatch.setattr(local, "session", session)
    found = await golden.edit()
    assert not found.ok and says in found.text


async def test_an_engine_that_never_comes_ends_the_edit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Doctor ends where torch is missing, too."""
    monkeypatch.setattr(golden, "GOLDEN_S", 0.0)
    found = await golden.edit()
    assert not found.ok and "did not end within" in found.text


@pytest.mark.usefixtures("no_card")
def test_edit_is_asked_for(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without --edit no engine is started, with it there is one more finding."""
    monkeypatch.setattr(local, "session", shutil.rmtree)
    assert "edit" not in [about for about, _ in doctor.examine(loaded(folder / "d"))]

    async def done() -> Check:
        return Check(True, "edited")

    monkeypatch.setattr(golden, "edit", done)
    found = list(doctor.examine(loaded(folder / "d"), edit=True))
    assert found[-1] == ("edit", Check(True, "edited"))
