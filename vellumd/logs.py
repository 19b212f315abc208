"""Log records: where they go and how they look."""

from __future__ import annotations

import faulthandler
import json
import logging
import sys
from pathlib import Path

from vellumd.errors import ConfigError
from vellumd.settings import LogSettings

TEXT = logging.Formatter("%(asctime)s %(levelname)-7s %(name)s: %(message)s")


def start(settings: LogSettings) -> None:
    """Send log records where `[log]` says. Raises `ConfigError` for a file that cannot be."""
    handler = _to_file(settings.file) if settings.file else logging.StreamHandler()
    handler.setFormatter(JsonFormatter() if settings.format == "json" else TEXT)
    if sys.stderr:  # what kills us by SIGABRT, a watchdog, then says where each thread was
        faulthandler.enable()
    logging.basicConfig(level=settings.level.upper(), handlers=[handler], force=True)


def _to_file(file: Path) -> logging.Handler:
    try:
        return logging.FileHandler(file, encoding="utf-8")
    except OSError as error:
        raise ConfigError(
            f"log.file: {file} cannot be written ({error.strerror}). Correct it."
        ) from None


class LeveledLines(logging.Formatter):
    """The engine process' records for its standard error: each line begins with its level."""

    def format(self, record: logging.LogRecord) -> str:
        """The record with its traceback, the level before every line."""
        lines = f"{record.name} {super().format(record)}".splitlines()
        return "\n".join(f"{record.levelname} {line}" for line in lines)


def leveled(line: str) -> tuple[int, str]:
    """Level and text of a line of `LeveledLines`; what others print is information."""
    word, space, text = line.partition(" ")
    level = logging.getLevelNamesMapping().get(word) if space else None
    return (logging.INFO, line) if level is None else (level, text)


class JsonFormatter(logging.Formatter):
    """One JSON object a record."""

    def format(self, record: logging.LogRecord) -> str:
        """The record as one line of JSON."""
        fields = {
            "at": self.formatTime(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            fields["exception"] = self.formatException(record.exc_info)
        return json.dumps(fields, ensure_ascii=False)
