"""What `vellumd doctor` asks of this door: address, port, key and certificate."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterable
from typing import TYPE_CHECKING

from vellumd import Check, errors
from vellumd_http import keyfile

if TYPE_CHECKING:
    import ssl

    from vellumd_http.plugin import HttpSettings

ANSWER_S = 3
"""Seconds within which whatever listens must answer."""


async def check_port(settings: HttpSettings) -> Iterable[Check]:
    """One finding about the configured address; none where the system chooses the port."""
    if not await asyncio.to_thread(_is_ours, settings.host):
        text = f"http: {settings.host} is no address of this machine; correct plugins.http.host"
        return [Check(False, text)]
    if settings.port == 0:
        return []
    try:
        async with asyncio.timeout(ANSWER_S):
            answer = await _ask(settings)
    except ConnectionError:
        return [Check(True, f"http: port {settings.port} is free")]
    except (OSError, TimeoutError):
        answer = b""
    if answer.startswith(b"HTTP/1.1 200"):
        return [Check(True, f"http: a daemon answers on port {settings.port}")]
    text = f"http: another program has port {settings.port}; set plugins.http.port"
    return [Check(False, text)]


async def _ask(settings: HttpSettings) -> bytes:
    """The first line of the answer to /healthz; no aiohttp, so that doctor starts quickly."""
    host = _reachable(settings.host)
    reader, writer = await asyncio.open_connection(host, settings.port, ssl=_tls(settings))
    try:
        writer.write(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        return await reader.readline()
    finally:
        writer.close()


def _tls(settings: HttpSettings) -> ssl.SSLContext | None:
    """How to speak to a daemon of these settings; whose certificate it shows does not matter."""
    if settings.tls_cert is None:
        return None
    import ssl

    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


async def check_key(settings: HttpSettings) -> Iterable[Check]:
    """Whether there is a key in the file that is named for it."""
    if settings.api_key_file is None:
        return []
    try:
        keyfile.read(settings.api_key_file)
    except errors.ConfigError as error:
        return [Check(False, f"http: {error.message}")]
    return [Check(True, "http: the key in plugins.http.api_key_file can be read")]


async def check_tls(settings: HttpSettings) -> Iterable[Check]:
    """Whether the certificate can be used, where one is set."""
    if settings.tls_cert is None:
        return []
    from vellumd_http import tls

    try:
        tls.context(settings)
    except errors.ConfigError as error:
        return [Check(False, f"http: {error.message}")]
    return [Check(True, "http: the TLS certificate and its key are readable and belong together")]


def _is_ours(host: str) -> bool:
    """Whether a door can listen on `host`."""
    try:
        for family, kind, _, _, address in socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM):
            with socket.socket(family, kind) as trial:
                trial.bind(address)
    except OSError:
        return False
    return True


def _reachable(host: str) -> str:
    """An address that leads to a listener on `host`, which may mean all addresses."""
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - compared only
