"""Where the running daemon is: a file in the data folder, for commands on this machine."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from vellumd import platform

FILE = "daemon.json"
"""The file's name in the data folder."""


@dataclass(frozen=True)
class Announcement:
    """A daemon's process, address, and the file that holds the key for it, if it needs one."""

    pid: int
    url: str
    key_file: Path | None = None


def write(folder: Path, told: Announcement) -> None:
    """Announce a daemon, in place of another one. Raises `OSError`."""
    fields: dict[str, object] = {"pid": told.pid, "url": told.url}
    if told.key_file:
        fields["key_file"] = str(told.key_file.absolute())
    platform.replace_durably(folder / FILE, json.dumps(fields).encode())


def read(folder: Path) -> Announcement | None:
    """What was announced; None if nothing was that can be understood."""
    try:
        said = json.loads((folder / FILE).read_bytes())
        key_file = said.get("key_file")
        return Announcement(
            int(said["pid"]), str(said["url"]), Path(key_file) if key_file else None
        )
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return None


def take_back(folder: Path) -> None:
    """Remove what this process announced; another one's address is not ours to remove."""
    if (told := read(folder)) and told.pid == os.getpid():
        with suppress(OSError):
            (folder / FILE).unlink()
