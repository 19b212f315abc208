"""Who may ask: the Host, the Origin and the key of every request.

Threats: a name that an attacker points at this machine (DNS rebinding), a page of
another site that posts here (CSRF), a stranger on the network. Accepted: whoever can
read the key's file or sits in `trusted_networks` may do everything.
"""

from __future__ import annotations

import ipaddress
import socket
from urllib.parse import urlsplit

from aiohttp import web

from vellumd import errors
from vellumd_http.access import Access
from vellumd_http.listen import is_address
from vellumd_http.plugin import HttpSettings
from vellumd_http.session import CODE_PATH

OPEN_PATHS = frozenset({"/", "/healthz", "/readyz"})
"""Paths that need no key; `/` without one shows nothing but a field for it."""
OPEN_FOLDERS = ("/static/", "/r/")
"""Likewise; a link `/r/…` has its own token."""

ENTRY = ("PUT", CODE_PATH)
"""Where a code is shown in place of a key; the route looks at it."""

_SAFE = frozenset({"GET", "HEAD", "OPTIONS"})
_SUFFIXES = ("", ".local", ".lan", ".home.arpa")
_PORTS = {"http": 80, "https": 443}


def machine_names() -> set[str]:
    """Names of this machine: bare and as home networks spell them."""
    name = socket.gethostname().lower()
    short = name.partition(".")[0]
    return {name, *(short + suffix for suffix in _SUFFIXES)}


def split_host(text: str, scheme: str = "http") -> tuple[str, int | None]:
    """Name and port of `host[:port]`, lower case; raises `ValueError` for anything else.

    The port a scheme has by default counts as none.
    """
    if set(text) & set("/\\@?# \t"):
        raise ValueError("not a host")
    parts = urlsplit(f"//{text}")
    host, port = (parts.hostname or "").removesuffix("."), parts.port
    if not host:
        raise ValueError("no host")
    return host, None if port == _PORTS.get(scheme) else port


class Guard:
    """Lets a request pass or raises `ForbiddenHost`, `ForbiddenOrigin`, `Unauthorized`."""

    def __init__(self, settings: HttpSettings, access: Access) -> None:
        self._access = access
        self._networks = settings.trusted_networks
        self._origins = {origin.lower().rstrip("/") for origin in settings.allowed_origins}
        self._names = {"localhost", "host.docker.internal", *machine_names()}
        self._names |= {name.lower() for name in settings.allowed_hosts}

    def check(self, request: web.Request) -> None:
        """The three checks, in the order in which they tell a stranger least."""
        self._check_host(request)
        if request.method not in _SAFE:
            self._check_origin(request)
        if request.path in OPEN_PATHS or request.path.startswith(OPEN_FOLDERS):
            return
        if (request.method, request.path) == ENTRY:
            return
        if not self.admits(request):
            raise errors.Unauthorized("This daemon needs a key.")

    def admits(self, request: web.Request) -> bool:
        """Whether the request has the key it needs, or needs none."""
        access = self._access
        return not access.needed or self._trusts(request.remote) or access.opens(request)

    def _check_host(self, request: web.Request) -> None:
        named = request.headers.getall("Host", [])
        if len(named) != 1 or not all(self.answers_for(h) for h in (named[0], request.host)):
            raise errors.ForbiddenHost("This daemon does not answer for the name it was called by.")

    def answers_for(self, host: str) -> bool:
        """Whether `host[:port]` is an address or a name of this machine."""
        try:
            name, _port = split_host(host)
        except ValueError:
            return False
        return name in self._names or is_address(name)

    def _check_origin(self, request: web.Request) -> None:
        """A browser tells whose page sends; programs send no Origin and pass.

        Pages served over plain http from a LAN name get no Sec-Fetch-Site, so Origin
        against Host is the check and Sec-Fetch-Site only tightens it.
        """
        origins = request.headers.getall("Origin", [])
        if len(origins) == 1 and origins[0].lower() in self._origins:
            return
        foreign = request.headers.get("Sec-Fetch-Site", "none") not in ("same-origin", "none")
        if foreign or len(origins) > 1 or any(not _same(o, request.host) for o in origins):
            raise errors.ForbiddenOrigin("The request comes from another site's page.")

    def _trusts(self, remote: str | None) -> bool:
        try:
            address = ipaddress.ip_address((remote or "").partition("%")[0])
        except ValueError:
            return False
        mapped = getattr(address, "ipv4_mapped", None)
        return any((mapped or address) in network for network in self._networks)


def _same(origin: str, host: str) -> bool:
    """Whether `origin` is a page of `host`; a proxy may have taken the TLS off."""
    scheme, separator, rest = origin.partition("://")
    if not separator or scheme not in _PORTS:
        return False
    try:
        return split_host(rest, scheme) == split_host(host, scheme)
    except ValueError:
        return False
