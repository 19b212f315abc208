"""Named keys: each client its own, so that one can be taken back. Kept as hashes.

The file lies in the data folder and is readable by the daemon's user alone. It holds
SHA-256 of 32 random bytes each, from which no key can be guessed.
"""

from __future__ import annotations

import hashlib
import json
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from vellumd import errors, platform

FILE = "keys.json"
"""The file's name in the data folder."""

_NAME = re.compile(r"[\w][\w .@-]{0,63}")


@dataclass(frozen=True)
class Key:
    """A key's name, when it was made (RFC 3339, UTC), and SHA-256 of it in hex."""

    name: str
    created: str
    sha256: str


def digest(key: str) -> str:
    """SHA-256 of a key in hex."""
    return hashlib.sha256(key.encode()).hexdigest()


class Keyring:
    """The named keys of one daemon. A change by another process is seen at the next look."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._seen: tuple[int, int, int] | None = None
        self._keys: tuple[Key, ...] = ()

    @property
    def keys(self) -> tuple[Key, ...]:
        """All keys, oldest first; raises `ConfigError` if the file is not readable."""
        try:
            found = self._file.stat()
        except FileNotFoundError:
            self._seen, self._keys = None, ()
            return ()
        stamp = (found.st_ino, found.st_mtime_ns, found.st_size)
        if stamp != self._seen:
            self._keys = self._read()
            self._seen = stamp
        return self._keys

    def add(self, name: str) -> str:
        """Make a key and return it: nothing else will ever tell it again.

        Raises `BadRequest` for a name that is taken or is none.
        """
        if not _NAME.fullmatch(name):
            raise errors.BadRequest("NAME: up to 64 letters, digits, spaces and . @ _ -")
        with self._alone():
            if any(known.name == name for known in self.keys):
                raise errors.BadRequest(f"NAME: there is a key {name!r}; remove it first.")
            key = secrets.token_urlsafe(32)
            created = datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
            self._write((*self.keys, Key(name, created, digest(key))))
        return key

    def remove(self, name: str) -> None:
        """Let a key open nothing any more; raises `NotFound`."""
        with self._alone():
            left = tuple(known for known in self.keys if known.name != name)
            if left == self.keys:
                raise errors.NotFound(f"There is no key {name!r}.")
            self._write(left)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Keep other processes from changing the keys; raises `BadRequest` if one does."""
        self._file.parent.mkdir(parents=True, exist_ok=True)
        try:
            lock = platform.FileLock(self._file.with_suffix(".lock"))
        except platform.LockedError:
            raise errors.BadRequest(
                "Another `vellumd keys` is changing the keys. Run it again."
            ) from None
        try:
            yield
        finally:
            lock.release()

    def _read(self) -> tuple[Key, ...]:
        try:
            listed = json.loads(self._file.read_text("utf-8"))["keys"]
            return tuple(Key(**fields) for fields in listed)
        except OSError as error:
            raise errors.ConfigError(
                f"{FILE} cannot be read ({error.strerror}). Use `vellumd keys` as the user "
                "that the daemon runs as."
            ) from None
        except (ValueError, TypeError, LookupError):
            raise errors.ConfigError(
                f"{FILE} is damaged. Remove it and add the keys again."
            ) from None

    def _write(self, keys: tuple[Key, ...]) -> None:
        text = json.dumps({"keys": [asdict(key) for key in keys]}, indent=1)
        platform.replace_durably(self._file, text.encode(), mode=0o600)
