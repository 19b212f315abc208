"""HTTPS with a certificate of a made-up authority."""

from __future__ import annotations

import argparse
import asyncio
import logging
import socket
import ssl
import struct
from contextlib import suppress
from pathlib import Path

import pytest
import trustme

from vellumd import errors
from vellumd.cli import client
from vellumd_http import tls
from vellumd_http.checks import check_port, check_tls
from vellumd_http.plugin import HttpSettings

from .conftest import EDIT, OpenDoor


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    """Who signs."""
    return trustme.CA()


@pytest.fixture
def files(tmp_path: Path, authority: trustme.CA) -> dict[str, str]:
    """The settings that name a certificate for 127.0.0.1 and its key."""
    issued = authority.issue_cert("127.0.0.1")
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    issued.cert_chain_pems[0].write_to_path(cert)
    issued.private_key_pem.write_to_path(key)
    return {"tls_cert": str(cert), "tls_key": str(key)}


async def test_the_door_speaks_https_only(
    open_door: OpenDoor, files: dict[str, str], authority: trustme.CA
) -> None:
    """A job from submit to result for who trusts the authority; nothing in the clear."""
    trusting = ssl.create_default_context()
    authority.configure_trust(trusting)
    async with open_door(**files) as door:
        assert door.url.startswith("https://127.0.0.1:")
        async with door.client.post(
            f"{door.url}/generate", json=EDIT, headers={"Accept": "image/png"}, ssl=trusting
        ) as got:
            assert (got.status, got.content_type) == (200, "image/png")
        reader, writer = await asyncio.open_connection("127.0.0.1", door.port)
        writer.write(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert b"200" not in await reader.read()
        writer.close()
        old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        authority.configure_trust(old)
        with pytest.warns(DeprecationWarning, match="TLSv1_1"):
            old.maximum_version = ssl.TLSVersion.TLSv1_1
        with pytest.raises(ssl.SSLError):
            await asyncio.open_connection("127.0.0.1", door.port, ssl=old)


async def test_no_connection_leaves_a_traceback(
    open_door: OpenDoor,
    files: dict[str, str],
    authority: trustme.CA,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Neither a good one nor a handshake that fails: anybody could fill the disk with those."""
    trusting, distrusting = ssl.create_default_context(), ssl.create_default_context()
    authority.configure_trust(trusting)
    async with open_door(**files) as door:
        async with door.client.get(f"{door.url}/healthz", ssl=trusting) as got:
            assert got.status == 200
        with pytest.raises(ssl.SSLError):
            await asyncio.open_connection("127.0.0.1", door.port, ssl=distrusting)
        for said in (b"", b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01\x02\x00", bytes(4096)):
            reader, writer = await asyncio.open_connection("127.0.0.1", door.port)
            writer.write(said)
            writer.write_eof()
            with suppress(ConnectionError):
                await reader.read()
            writer.close()
        reset = socket.create_connection(("127.0.0.1", door.port))
        reset.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        reset.close()
        async with door.client.get(f"{door.url}/healthz", ssl=trusting) as got:
            assert got.status == 200
    loud = [one for one in caplog.records if one.exc_info or one.levelno >= logging.ERROR]
    assert [one.getMessage() for one in loud] == []


async def test_the_cookie_is_for_https_only(
    open_door: OpenDoor, files: dict[str, str], tmp_path: Path
) -> None:
    """Where the door speaks HTTPS itself."""
    (tmp_path / "key").write_text("right", encoding="ascii")
    async with open_door(api_key_file=str(tmp_path / "key"), **files) as door:
        headers = {"Authorization": "Bearer right"}
        url = f"{door.url}/v1/session"
        async with door.client.post(url, headers=headers, ssl=False) as got:
            assert "Secure" in got.headers["Set-Cookie"]


async def test_command_line_and_doctor_find_it(open_door: OpenDoor, files: dict[str, str]) -> None:
    """On this machine whatever name the certificate is for."""
    async with open_door(**files) as door:
        where = argparse.Namespace(url=door.url, key=None, key_file=None)
        daemon = await asyncio.to_thread(client.require, door.daemon.settings, where)
        assert await asyncio.to_thread(lambda: list(daemon.jobs({}))) == []
        settings = HttpSettings.model_validate({"port": door.port, **files})
        assert [found.ok for found in await check_port(settings)] == [True]
        assert [found.ok for found in await check_tls(settings)] == [True]


def write_wrong(name: str, folder: Path, authority: trustme.CA) -> dict[str, Path]:
    """Settings with one thing wrong."""
    issued, other = authority.issue_cert("a.example"), authority.issue_cert("b.example")
    cert, key = folder / "cert.pem", folder / "key.pem"
    issued.cert_chain_pems[0].write_to_path(cert)
    issued.private_key_pem.write_to_path(key)
    if name == "another key":
        other.private_key_pem.write_to_path(key)
    elif name == "no PEM":
        cert.write_bytes(b"\x30\x82")
    elif name == "no key inside":
        key.write_bytes(cert.read_bytes())
    elif name == "missing":
        key.unlink()
    elif name == "passphrase":
        key.write_text(
            "-----BEGIN ENCRYPTED PRIVATE KEY-----\nMIIBrTBXBgkqhkiG9w0BBQ0wSjApBgkqhkiG9w0B\n"
            "-----END ENCRYPTED PRIVATE KEY-----\n"
        )
    return {"tls_cert": cert, "tls_key": key}


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("another key", "does not belong"), ("no PEM", "PEM"), ("no key inside", "PEM"),
        ("missing", "tls_key: 'key.pem' cannot be read"), ("passphrase", "passphrase"),
    ],
)  # fmt: skip
async def test_wrong_files_refuse_the_start(
    open_door: OpenDoor, tmp_path: Path, authority: trustme.CA, name: str, told: str
) -> None:
    """The sentence says what is wrong with which; doctor says the same."""
    wrong = write_wrong(name, tmp_path, authority)
    with pytest.raises(errors.ConfigError, match=told):
        tls.context(HttpSettings(**wrong))  # type: ignore[arg-type]
    with pytest.raises(BaseExceptionGroup) as caught:
        async with open_door(**{key: str(file) for key, file in wrong.items()}):
            pass
    assert "ConfigError" in repr(caught.value.exceptions)
    (found,) = await check_tls(HttpSettings(**wrong))  # type: ignore[arg-type]
    assert not found.ok and told in found.text


def test_half_of_tls_is_refused() -> None:
    """A certificate without its key, or the other way round."""
    for half in ("tls_cert", "tls_key"):
        with pytest.raises(ValueError, match="set both"):
            HttpSettings.model_validate({half: "a.pem"})
