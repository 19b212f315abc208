"""Keys and cookies, on requests made by hand and on the open door."""

from __future__ import annotations

import asyncio
import re
import stat
import sys
from pathlib import Path

import pytest
from aiohttp import ClientPayloadError, CookieJar, web
from aiohttp.test_utils import make_mocked_request

from vellumd import Keyring, errors
from vellumd_http import keyfile
from vellumd_http.access import Access
from vellumd_http.plugin import HttpSettings

from .conftest import Door, OpenDoor


def access(folder: Path, **settings: object) -> Access:
    """The access of a door with these settings."""
    given = HttpSettings.model_validate(settings)
    return Access(given, Keyring(folder / "keys.json"), folder)


def ask(**headers: str) -> web.Request:
    return make_mocked_request("GET", "/v1/jobs", headers=headers)


def test_loopback_needs_no_key_until_there_is_one(tmp_path: Path) -> None:
    """Only this machine can ask there; a named key makes everybody need one."""
    for host in ("127.0.0.1", "::1", "localhost"):
        door = access(tmp_path, host=host)
        assert not door.needed
        assert door.made is None
    key = Keyring(tmp_path / "keys.json").add("phone")
    assert door.needed
    assert door.opens(ask(Authorization=f"Bearer {key}"))
    Keyring(tmp_path / "keys.json").remove("phone")
    assert not door.needed


def test_an_open_address_makes_a_key_once(tmp_path: Path) -> None:
    """32 random bytes, only its user's, and the same at the next start."""
    first = access(tmp_path, host="0.0.0.0")
    assert first.made is not None
    assert len(first.made) >= 43
    if sys.platform != "win32":
        for secret in ("api_key", "cookie_secret"):
            assert stat.S_IMODE((tmp_path / secret).stat().st_mode) == 0o600
    again = access(tmp_path, host="0.0.0.0")
    assert again.made is None
    assert again.opens(ask(Authorization=f"Bearer {first.made}"))


def test_the_file_of_the_key_is_known(tmp_path: Path) -> None:
    """So that commands of its user find it: the operator's, or the one that was made."""
    (tmp_path / "key").write_text("right\n", encoding="utf-8")
    assert access(tmp_path).file is None
    assert access(tmp_path, api_key_file=tmp_path / "key").file == tmp_path / "key"
    assert access(tmp_path, host="0.0.0.0").file == tmp_path / "api_key"


def test_named_keys_are_keys_enough(tmp_path: Path) -> None:
    """None is made besides them; without the last one an open address lets nobody in."""
    key = Keyring(tmp_path / "keys.json").add("phone")
    door = access(tmp_path, host="0.0.0.0")
    assert door.made is None
    assert door.opens(ask(Authorization=f"Bearer {key}"))
    Keyring(tmp_path / "keys.json").remove("phone")
    assert door.needed
    assert not door.opens(ask(Authorization=f"Bearer {key}"))


@pytest.mark.parametrize(
    ("header", "opens"),
    [
        ("Bearer right", True), ("bearer right", True), ("Bearer  right", True),
        ("Bearer wrong", False), ("Bearer", False), ("right", False), ("Basic right", False),
        ("Bearer right wrong", False), ("Bearer rïght", False), ("", False),
    ],
)  # fmt: skip
def test_only_the_right_key_opens(tmp_path: Path, header: str, opens: bool) -> None:
    """As a bearer token."""
    (tmp_path / "key").write_text("right\n", encoding="utf-8")
    door = access(tmp_path, api_key_file=tmp_path / "key")
    assert door.needed
    assert door.opens(ask(Authorization=header)) is opens


def test_a_file_without_a_key_refuses_the_start(tmp_path: Path) -> None:
    """Empty, missing, or one that no client could send; the text names no path."""
    (tmp_path / "empty").write_text("\n", encoding="utf-8")
    (tmp_path / "foreign").write_text("ключ\n", encoding="utf-8")
    for name in ("empty", "none", "foreign"):
        with pytest.raises(errors.ConfigError, match="api_key_file") as caught:
            access(tmp_path, api_key_file=tmp_path / name)
        assert str(tmp_path) not in caught.value.message


def test_a_half_made_secret_is_made_again(tmp_path: Path) -> None:
    """A crash while writing leaves no file that counts."""
    (tmp_path / "secret.new").write_text("ha", encoding="ascii")
    made = keyfile.make_or_read(tmp_path / "secret")
    assert made == keyfile.make_or_read(tmp_path / "secret")
    assert [file.name for file in tmp_path.iterdir()] == ["secret"]


def test_a_damaged_secret_of_our_own_names_its_remedy(tmp_path: Path) -> None:
    """It is no key of the operator's, so no setting is to be corrected."""
    (tmp_path / "cookie_secret").write_text("", encoding="ascii")
    with pytest.raises(errors.ConfigError, match=r"'cookie_secret'.*Remove the file"):
        access(tmp_path)


async def signed_in(door: Door, key: str) -> str:
    """The Set-Cookie header that the page gets for `key`."""
    headers = {"Authorization": f"Bearer {key}"}
    async with door.ask("POST", "/v1/session", headers=headers) as got:
        assert got.status == 204
        return got.headers["Set-Cookie"]


async def test_a_page_trades_its_key_for_a_cookie(open_door: OpenDoor, tmp_path: Path) -> None:
    """HttpOnly, SameSite=Strict, without the key in it; it opens what the key opens."""
    key = Keyring(tmp_path / "data/keys.json").add("phone")
    async with open_door() as door:
        door.client._cookie_jar = CookieJar(unsafe=True)  # cookies of an address, as browsers
        await door.json("GET", "/v1/jobs", 401)
        async with door.ask("GET", "/") as got:
            page = await got.text()
            assert 'id="key"' in page and "/generate" not in page
        await door.json("POST", "/v1/session", 401, headers={"Authorization": "Bearer wrong"})
        cookie = await signed_in(door, key)
        flags = cookie.lower()
        assert "httponly" in flags and "samesite=strict" in flags and "path=/" in flags
        assert key not in cookie
        assert (await door.json("GET", "/v1/jobs"))["jobs"] == []
        async with door.ask("GET", "/") as got:
            assert "/generate" in await got.text()
        async with door.ask("DELETE", "/v1/session") as got:
            assert got.status == 204
        await door.json("GET", "/v1/jobs", 401)


async def test_a_cookie_ends_with_its_key(open_door: OpenDoor, tmp_path: Path) -> None:
    """It outlives a restart, and not the removal of the key, which needs none."""
    ring = Keyring(tmp_path / "data/keys.json")
    key = ring.add("phone")
    ring.add("laptop")
    async with open_door() as door:
        cookie = {"Cookie": (await signed_in(door, key)).partition(";")[0]}
    async with open_door() as door:
        await door.json("GET", "/v1/jobs", headers=cookie)
        ring.remove("phone")
        await door.json("GET", "/v1/jobs", 401, headers=cookie)


async def test_a_foreign_page_cannot_use_the_cookie(open_door: OpenDoor, tmp_path: Path) -> None:
    """Not even one on another port of the same host, to which browsers send it."""
    key = Keyring(tmp_path / "data/keys.json").add("phone")
    async with open_door() as door:
        cookie = (await signed_in(door, key)).partition(";")[0]
        headers = {"Cookie": cookie, "Origin": "http://127.0.0.1:1"}
        for path in ("/v1/jobs", "/v1/session"):
            told = await door.json("POST", path, 403, json={}, headers=headers)
            assert told["code"] == "forbidden_origin"


async def test_an_open_address_tells_its_key_once(
    open_door: OpenDoor, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """As a link, on the terminal, not in the log; the next start says only where it lies."""
    caplog.set_level("INFO")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    networks = ["198.51.100.0/24"]
    async with open_door(host="0.0.0.0", trusted_networks=networks) as door:
        told = re.search(r"http://[\d.]+:(\d+)/#key=(\S+)", capsys.readouterr().out)
        assert told is not None
        assert int(told[1]) == door.port
        await door.json("GET", "/v1/jobs", headers={"Authorization": f"Bearer {told[2]}"})
        await signed_in(door, told[2])
    assert (tmp_path / "data/plugins/http/api_key").read_text().strip() == told[2]
    for again in (False, True):
        assert told[2] not in caplog.text
        assert "api_key" in caplog.text
        assert "198.51.100.0/24" in caplog.text
        if not again:
            caplog.clear()
            async with open_door(host="0.0.0.0", trusted_networks=networks):
                assert "#key=" not in capsys.readouterr().out


async def test_a_service_does_not_print_its_key(
    open_door: OpenDoor, tmp_path: Path, capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    """What is no terminal is kept, as in systemd's journal: the file and the link's form do."""
    caplog.set_level("INFO")
    async with open_door(host="0.0.0.0") as door:
        file = tmp_path / "data/plugins/http/api_key"
        told, key = capfd.readouterr(), file.read_text().strip()
        assert key not in told.out + told.err + caplog.text
        assert f"the key in {file}: browsers by http://" in caplog.text
        assert f":{door.port}/#key=KEY" in caplog.text
        await door.json("GET", "/v1/jobs", headers={"Authorization": f"Bearer {key}"})


async def test_links_that_would_be_refused_are_told(
    open_door: OpenDoor, caplog: pytest.LogCaptureFixture
) -> None:
    """`daemon.public_url` with a name that the door does not answer for."""
    core = {"daemon": {"public_url": "https://pics.example/"}}
    async with open_door(core, allowed_hosts=["pics.example"]):
        assert "public_url" not in caplog.text
    async with open_door(core):
        assert "public_url" in caplog.text


async def test_bytes_that_are_no_text_open_nothing(open_door: OpenDoor, tmp_path: Path) -> None:
    """In the key or in the cookie: 401 like any wrong one."""
    key = Keyring(tmp_path / "data/keys.json").add("phone")
    async with open_door() as door:
        cookie = (await signed_in(door, key)).partition("=")[0].encode()
        for header in (b"Authorization: Bearer \xff\xfe", b"Cookie: " + cookie + b"=\xff"):
            reader, writer = await asyncio.open_connection("127.0.0.1", door.port)
            writer.write(b"GET /v1/jobs HTTP/1.1\r\nHost: localhost\r\n" + header + b"\r\n\r\n")
            assert b" 401 " in await reader.readline()
            writer.close()


async def test_a_damaged_key_file_lets_nobody_in(
    open_door: OpenDoor, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """While the daemon runs: no way in, and the log says why."""
    ring = Keyring(tmp_path / "data/keys.json")
    key = ring.add("phone")
    async with open_door() as door:
        (tmp_path / "data/keys.json").write_text("?")
        headers = {"Authorization": f"Bearer {key}"}
        assert (await door.json("GET", "/v1/jobs", 500, headers=headers))["code"] == "internal"
    assert "keys.json is damaged" in caplog.text


async def test_a_removed_key_ends_its_streams(
    open_door: OpenDoor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who may not ask any more is told nothing more either."""
    monkeypatch.setattr("vellumd_http.streams.HEARTBEAT_S", 0.05)
    ring = Keyring(tmp_path / "data/keys.json")
    ring.add("desk")
    key = {"Authorization": f"Bearer {ring.add('phone')}"}
    async with (
        open_door() as door,
        asyncio.timeout(10),
        door.ask("GET", "/v1/events", headers=key) as got,
    ):
        assert got.status == 200
        ring.remove("phone")
        with pytest.raises(ClientPayloadError):
            await got.read()
