"""Who may ask: the Host, the Origin and the key of every request.

Threats: a name that an attacker points at this machine (DNS rebinding), a page of
another site that posts here (CSRF), a stranger on the network. Accepted: whoever can
read the key's file or sits in `trusted_networks` may do everything.
"""

from __future__ import annotations

import hmac
import ipaddress
import logging
import socket
from pathlib import Path
from urllib.parse import urlsplit

from aiohttp import web

from vellumd import errors
from vellumd_http import keyfile
from vellumd_http.plugin import HttpSettings

OPEN_PATHS = frozenset({"/healthz", "/readyz"})
"""Paths that need no key; `/r/…` has its own token."""

_SAFE = frozenset({"GET", "HEAD", "OPTIONS"})
_SUFFIXES = ("", ".local", ".lan", ".home.arpa")
_PORTS = {"http": 80, "https": 443}


def is_address(host: str) -> bool:
    """Whether `host` is an IP address: no name, so nothing to rebind."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach `host`."""
    return host == "localhost" or (is_address(host) and ipaddress.ip_address(host).is_loopback)


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

    def __init__(self, settings: HttpSettings, key: str | None) -> None:
        self._key = key
        self._networks = settings.trusted_networks
        self._origins = {origin.lower().rstrip("/") for origin in settings.allowed_origins}
        self._names = {"localhost", "host.docker.internal", *machine_names()}
        self._names |= {name.lower() for name in settings.allowed_hosts}

    def check(self, request: web.Request) -> None:
        """The three checks, in the order in which they tell a stranger least."""
        self._check_host(request)
        if request.method not in _SAFE:
            self._check_origin(request)
        if request.path not in OPEN_PATHS and not request.path.startswith("/r/"):
            self._check_key(request)

    def _check_host(self, request: web.Request) -> None:
        named = request.headers.getall("Host", [])
        if len(named) != 1 or not all(self._answers_for(h) for h in (named[0], request.host)):
            raise errors.ForbiddenHost("This daemon does not answer for the name it was called by.")

    def _answers_for(self, host: str) -> bool:
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

    def _check_key(self, request: web.Request) -> None:
        if self._key is None or self._trusts(request.remote):
            return
        scheme, _, given = request.headers.get("Authorization", "").partition(" ")
        right = hmac.compare_digest(given.strip().encode(), self._key.encode())
        if scheme.lower() != "bearer" or not right:
            raise errors.Unauthorized("This daemon needs a key.")

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


def find_key(settings: HttpSettings, folder: Path, log: logging.Logger) -> str | None:
    """The key that clients must send, or None where only this machine can ask.

    An address that others can reach without a configured key makes one in `folder`.
    """
    for network in settings.trusted_networks:
        log.warning("Machines in %s need no key: they see and change every job.", network)
    if settings.api_key_file is not None:
        return keyfile.read(settings.api_key_file)
    if is_loopback(settings.host):
        return None
    path = folder / "api_key"
    key = keyfile.make_or_read(path)
    log.warning(
        "Others can reach %s, so a key is needed. It lies in %s; send it as "
        "`Authorization: Bearer KEY`.",
        settings.host,
        path,
    )
    return key
