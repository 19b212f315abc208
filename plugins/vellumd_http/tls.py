"""TLS of the door: the certificate that its settings name."""

from __future__ import annotations

import ssl
from pathlib import Path

from vellumd import errors
from vellumd_http.plugin import HttpSettings


def context(settings: HttpSettings) -> ssl.SSLContext | None:
    """What connections are encrypted with; None for plain HTTP.

    Raises `ConfigError` that names the file which cannot be used.
    """
    cert, key = settings.tls_cert, settings.tls_key
    if cert is None or key is None:
        return None
    for name, file in (("tls_cert", cert), ("tls_key", key)):
        if not _readable(file):
            raise errors.ConfigError(
                f"plugins.http.{name}: {file.name!r} cannot be read. Name a PEM file that the "
                "daemon's user may read."
            )
    found = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        # Without a password of ours, OpenSSL would ask for one on the terminal.
        found.load_cert_chain(cert, key, password="")
    except (ssl.SSLError, ValueError) as error:
        raise errors.ConfigError(_complaint(error)) from None
    return found


def _complaint(error: Exception) -> str:
    if getattr(error, "reason", None) == "KEY_VALUES_MISMATCH":
        return (
            "plugins.http.tls_key: does not belong to the certificate in tls_cert. Name the key "
            "that the certificate was made for."
        )
    return (
        "plugins.http.tls_cert and tls_key: must be PEM files, the certificate with its chain "
        "and its key without a passphrase. Convert them, or set neither."
    )


def _readable(file: Path) -> bool:
    try:
        with file.open("rb"):
            return True
    except OSError:
        return False
