"""Secrets that this door keeps in files only its user can read."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from vellumd import errors


def make_or_read(path: Path) -> str:
    """The secret in `path`; 32 random bytes are put there (mode 0600) the first time.

    It is renamed into place, so a crash leaves no half of it.
    """
    if not path.exists():
        temporary = path.with_name(f"{path.name}.new")
        temporary.unlink(missing_ok=True)
        handle = os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
        with os.fdopen(handle, "w", encoding="ascii") as file:
            file.write(secrets.token_urlsafe(32) + "\n")
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    try:
        return read(path)
    except errors.ConfigError:
        raise errors.ConfigError(
            f"plugins.http: the secret in {path.name!r}, a file of the data folder, is damaged. "
            "Remove the file: another secret is made."
        ) from None


def read(path: Path) -> str:
    """The key in the operator's own file; raises `ConfigError` if there is none."""
    try:
        lines = path.read_text(encoding="utf-8-sig").split()
    except (OSError, UnicodeDecodeError):
        raise errors.ConfigError(
            f"plugins.http.api_key_file: {path.name!r} cannot be read. Make it, or drop the key."
        ) from None
    if len(lines) != 1 or not lines[0].isascii():  # HTTP's headers carry nothing else
        raise errors.ConfigError(
            f"plugins.http.api_key_file: {path.name!r} must hold one line, the key, in ASCII and "
            "without spaces."
        )
    return lines[0]
