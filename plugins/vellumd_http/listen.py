"""The addresses of the door: opening them, and telling what is wrong with one."""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import socket
import ssl
from collections.abc import Callable

from vellumd import errors

DEFAULT_HOST = "127.0.0.1"
BACKLOG = 1024
"""Connections that wait to be accepted; the system may allow fewer."""


HANDSHAKE_S = 15
"""Seconds that a client has to agree on TLS."""


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


async def listen(
    protocol: Callable[[], asyncio.Protocol],
    host: str,
    port: int,
    tls: ssl.SSLContext | None = None,
) -> asyncio.Server:
    """Open an address for connections that `protocol` makes; port 0 lets the system choose.

    Raises `ConfigError` for what waiting does not mend, else `OSError`.
    """
    loop = asyncio.get_running_loop()
    try:
        return await loop.create_server(
            protocol, host, port, backlog=BACKLOG, ssl=tls,
            ssl_handshake_timeout=HANDSHAKE_S if tls else None,
        )  # fmt: skip
    except OSError as error:
        raise _refusal(error, host, port) from None


def port_of(server: asyncio.Server) -> int:
    """The TCP port of a server."""
    return int(server.sockets[0].getsockname()[1])


def url(host: str, port: int, tls: ssl.SSLContext | None = None) -> str:
    """The address to type on this machine; a wildcard is reached as loopback."""
    shown = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104
    return _typed(shown, port, tls)


def url_for_others(host: str, port: int, tls: ssl.SSLContext | None = None) -> str:
    """The address to type on other machines; for a wildcard that of the way out."""
    route = {"0.0.0.0": (socket.AF_INET, "192.0.2.1"), "::": (socket.AF_INET6, "2001:db8::1")}  # noqa: S104
    if host in route:
        family, somewhere = route[host]
        host = _way_out(family, somewhere) or socket.gethostname()
    return _typed(host, port, tls)


def _way_out(family: int, somewhere: str) -> str | None:
    """The machine's own address towards `somewhere`; connecting UDP sends nothing."""
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as way:
            way.connect((somewhere, 9))
            return str(way.getsockname()[0])
    except OSError:
        return None


def _typed(host: str, port: int, tls: ssl.SSLContext | None) -> str:
    scheme = "https" if tls else "http"
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"


def _refusal(error: OSError, host: str, port: int) -> Exception:
    """What the operator has to correct, for an `error` that waiting does not mend."""
    if error.errno == errno.EADDRINUSE:
        return errors.ConfigError(
            f"plugins.http.port: {port} of {host} is taken by another program. "
            "Stop that one, or choose another port."
        )
    if isinstance(error, socket.gaierror) or error.errno == errno.EADDRNOTAVAIL:
        return errors.ConfigError(
            f"plugins.http.host: {host} is no address of this machine. "
            "Use 127.0.0.1, 0.0.0.0 for all networks, or one of its own."
        )
    if error.errno == errno.EACCES:
        return errors.ConfigError(
            f"plugins.http.port: the system does not let this user listen on {port}. "
            "Choose a port above 1023."
        )
    return error
