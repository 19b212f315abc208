"""Which lanes are paused, noted beside the database: its loss must not start them.

The database is what counts. It is noted at every change and at every opening, and read
where the database has to be made again.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path

from vellumd import platform

log = logging.getLogger(__name__)


class Pauses:
    """A file that lists lanes; there is none where no lane is paused."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def read(self) -> set[int]:
        """The lanes. Of a file that cannot be read lane 0: better a pause too much."""
        try:
            return {int(lane) for lane in json.loads(self._path.read_bytes())}
        except FileNotFoundError:
            return set()
        except (OSError, ValueError, TypeError):
            log.warning("%s cannot be read: the queue is taken for paused", self._path.name)
            return {0}

    def write(self, lanes: set[int]) -> None:
        """Note the lanes; a note only, so nothing fails with it."""
        try:
            if not lanes:
                self._path.unlink(missing_ok=True)
            else:
                platform.replace_durably(self._path, json.dumps(sorted(lanes)).encode())
        except OSError:
            log.exception("the queue's pause could not be noted beside the database")
