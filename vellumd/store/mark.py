"""How far the database had come, noted beside it.

A write-ahead log that was cut off, or a database put back from a copy, looks whole and
has forgotten its last commits. The number of the newest event, written after each commit,
tells. It is not fsynced: a kill does not lose it, and after a power cut an older number
is no harm.
"""

from __future__ import annotations

from pathlib import Path

WIDTH = 20
MOST = 1 << 53
"""Numbers from here on are no event's: something wrote over the file."""


class Mark:
    """A file that holds one number."""

    def __init__(self, path: Path) -> None:
        if not path.exists():
            path.write_bytes(b"0" * WIDTH)
        self._file = path.open("r+b", buffering=0)

    def read(self) -> int:
        """The number; 0 if what is there is none."""
        self._file.seek(0)
        written = self._file.read(WIDTH + 1) or b""
        number = int(written) if len(written) == WIDTH and written.isdigit() else 0
        return number if number < MOST else 0

    def write(self, number: int) -> None:
        """Put `number` in place of the last one."""
        self._file.seek(0)
        self._file.write(b"%020d" % number)
        self._file.truncate()

    def close(self) -> None:
        """Let go of the file."""
        self._file.close()
