"""Which keys open the door, and the cookies that pages get for them."""

from __future__ import annotations

import hashlib
import hmac
from pathlib import Path
from typing import TYPE_CHECKING

from aiohttp import web

from vellumd_http import keyfile
from vellumd_http.listen import is_loopback
from vellumd_http.plugin import HttpSettings

if TYPE_CHECKING:
    from vellumd import Keyring

COOKIE_S = 90 * 24 * 3600
"""Seconds for which a browser keeps its cookie; a key that is removed ends it at once."""


class Access:
    """The key of `api_key_file`, or the one made at the first start, and the named ones.

    An address that others can reach makes a key in `folder` where there is none; `made` is
    that key while it has been told to nobody. `file` is where the door's own key lies, if it
    has one. Raises `ConfigError` for a file without a key.
    """

    def __init__(self, settings: HttpSettings, ring: Keyring, folder: Path) -> None:
        self._ring = ring
        self.open_to_others = not is_loopback(settings.host)
        self._secret = keyfile.make_or_read(folder / "cookie_secret").encode()
        self.file: Path | None = None
        self.made: str | None = None
        self._own = self._find(settings, folder / "api_key")
        # Cookies go to every port of a host: each daemon has its own name for it.
        self._cookie = f"vellumd-{hashlib.sha256(self._secret).hexdigest()[:8]}"

    def _find(self, settings: HttpSettings, file: Path) -> str | None:
        if settings.api_key_file is not None:
            self.file = settings.api_key_file
            return keyfile.read(settings.api_key_file)
        if not self.open_to_others:
            return None
        if not file.exists():
            if self._ring.keys:
                return None
            self.made = keyfile.make_or_read(file)
        self.file = file
        return keyfile.make_or_read(file)

    @property
    def needed(self) -> bool:
        """Whether there is a key at all; without one, only this machine can ask."""
        return self.open_to_others or self._own is not None or bool(self._ring.keys)

    def opens(self, request: web.Request) -> bool:
        """Whether the request shows a key, or a cookie that was given for one."""
        shown = _digest(_bearer(request))
        cookie = request.cookies.get(self._cookie, "").encode(errors="surrogateescape")
        return any(
            hmac.compare_digest(shown, known)
            or hmac.compare_digest(self._token(known).encode(), cookie)
            for known in self._digests()
        )

    def remember(self, request: web.Request, answer: web.Response) -> None:
        """Give the page whose request shows a key a cookie for it, which no script can read."""
        shown = _digest(_bearer(request))
        if shown in self._digests():
            answer.set_cookie(
                self._cookie, self._token(shown), max_age=COOKIE_S, path="/", httponly=True,
                samesite="Strict", secure=request.secure,
            )  # fmt: skip

    def forget(self, answer: web.Response) -> None:
        """Take the cookie back."""
        answer.del_cookie(self._cookie, path="/", httponly=True, samesite="Strict")

    def _digests(self) -> list[str]:
        own = [] if self._own is None else [_digest(self._own)]
        return [*own, *(key.sha256 for key in self._ring.keys)]

    def _token(self, digest: str) -> str:
        """The cookie's value: not the key, which other ports of the host would be sent."""
        return hmac.new(self._secret, digest.encode(), hashlib.sha256).hexdigest()


def _bearer(request: web.Request) -> str:
    """The key of the Authorization header; empty if there is none."""
    scheme, _, given = request.headers.get("Authorization", "").partition(" ")
    return given.strip() if scheme.lower() == "bearer" else ""


def _digest(key: str) -> str:
    return hashlib.sha256(key.encode(errors="surrogateescape")).hexdigest()
