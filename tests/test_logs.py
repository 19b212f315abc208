"""Logs: they go where the settings say, or the start is refused."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from vellumd import errors, logs
from vellumd.settings import LogSettings


@pytest.fixture(autouse=True)
def own_handlers() -> Iterator[None]:
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    root.handlers.clear()
    yield
    for handler in root.handlers:
        handler.close()
    root.handlers[:] = before
    root.setLevel(level)


def test_json_lines_in_a_file(tmp_path: Path) -> None:
    """Each record is one JSON object on a line, with what it is about and any traceback."""
    file = tmp_path / "vellumd.log"
    logs.start(LogSettings(level="warning", format="json", file=file))
    logging.getLogger("vellumd.x").info("unheard")
    try:
        raise ValueError("no paper")
    except ValueError:
        logging.getLogger("vellumd.x").exception("größer\nals")
    (line,) = file.read_text("utf-8").splitlines()
    record = json.loads(line)
    assert (record["level"], record["logger"]) == ("error", "vellumd.x")
    assert record["message"] == "größer\nals" and "no paper" in record["exception"]


def test_the_engines_lines_keep_their_level() -> None:
    """Every line of a record does, its traceback too; what others print is information."""
    try:
        raise ValueError("no\npaper")
    except ValueError:
        record = logging.LogRecord("x", logging.ERROR, "", 0, "a\nb", None, sys.exc_info())
    lines = [logs.leveled(line) for line in logs.LeveledLines().format(record).splitlines()]
    assert {level for level, _ in lines} == {logging.ERROR}
    assert [text for _, text in lines][:3] == ["x a", "b", "Traceback (most recent call last):"]
    assert lines[-1] == (logging.ERROR, "paper")
    for printed in ("", "ERROR", "Loading: 100%"):
        assert logs.leveled(printed) == (logging.INFO, printed)


def test_a_file_that_cannot_be_written(tmp_path: Path) -> None:
    """A wrong log.file is a configuration error that names the key."""
    with pytest.raises(errors.ConfigError, match=r"log\.file"):
        logs.start(LogSettings(file=tmp_path / "no folder" / "vellumd.log"))
