"""The addresses of the door: opening them, and telling what is wrong with one."""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import Callable

from vellumd import errors

DEFAULT_HOST = "127.0.0.1"
BACKLOG = 1024
"""Connections that wait to be accepted; the system may allow fewer."""


async def listen(protocol: Callable[[], asyncio.Protocol], host: str, port: int) -> asyncio.Server:
    """Open an address for connections that `protocol` makes; port 0 lets the system choose.

    Raises `ConfigError` for what waiting does not mend, else `OSError`.
    """
    loop = asyncio.get_running_loop()
    try:
        return await loop.create_server(protocol, host, port, backlog=BACKLOG)
    except OSError as error:
        raise _refusal(error, host, port) from None


def port_of(server: asyncio.Server) -> int:
    """The TCP port of a server."""
    return int(server.sockets[0].getsockname()[1])


def url(host: str, port: int) -> str:
    """The address to type; a wildcard is reached as this machine."""
    shown = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104
    return f"http://[{shown}]:{port}" if ":" in shown else f"http://{shown}:{port}"


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
