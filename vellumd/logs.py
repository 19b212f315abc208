"""Log records: where they go and how they look."""

from __future__ import annotations

import json
import logging

from vellumd.settings import LogSettings

TEXT = logging.Formatter("%(asctime)s %(levelname)-7s %(name)s: %(message)s")


def start(settings: LogSettings) -> None:
    """Send log records where `[log]` says."""
    handler: logging.Handler = (
        logging.FileHandler(settings.file, encoding="utf-8")
        if settings.file
        else logging.StreamHandler()
    )
    handler.setFormatter(JsonFormatter() if settings.format == "json" else TEXT)
    logging.basicConfig(level=settings.level.upper(), handlers=[handler], force=True)


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
