"""One-time codes, by themselves and at an open door."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from vellumd import Keyring
from vellumd_http.codes import LIFE_S, MOST, Codes

from .conftest import Door, OpenDoor

PATH = "/v1/session/code"


def bearer(secret: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {secret}"}


def test_a_code_opens_once() -> None:
    """For its owner; what is no code opens nothing."""
    codes = Codes()
    code = codes.make("owner")
    assert len(code) >= 22
    assert codes.take(code[:-1]) is None
    assert codes.take("") is None
    assert codes.take(code) == "owner"
    assert codes.take(code) is None


def test_a_code_grows_old() -> None:
    """After two minutes it opens nothing."""
    now = 0.0
    codes = Codes(lambda: now)
    first, second = codes.make("owner"), codes.make("owner")
    now = LIFE_S - 0.1
    assert codes.take(first) == "owner"
    now = LIFE_S
    assert codes.take(second) is None


def test_codes_without_end_are_not_kept() -> None:
    """The oldest ends for a new one."""
    codes = Codes()
    made = [codes.make("owner") for _ in range(MOST + 1)]
    assert codes.take(made[0]) is None
    assert codes.take(made[1]) == "owner"


async def made(door: Door, **headers: str) -> Any:
    """What a signed-in page is told."""
    return await door.json("POST", PATH, headers=headers)


async def test_a_code_lets_a_browser_in(open_door: OpenDoor, tmp_path: Path) -> None:
    """Once, with a cookie like that of the key, which ends with the key; the key is nowhere."""
    ring = Keyring(tmp_path / "data/keys.json")
    key = ring.add("phone")
    ring.add("other")
    async with open_door() as door:
        await door.json("POST", PATH, 401)
        told = await made(door, **bearer(key))
        assert told["expires_s"] == LIFE_S
        assert key not in str(told)
        async with door.ask("PUT", PATH, headers=bearer(told["code"])) as got:
            assert got.status == 204
            flags = got.headers["Set-Cookie"].lower()
            assert "httponly" in flags and "samesite=strict" in flags
            cookie = {"Cookie": got.headers["Set-Cookie"].partition(";")[0]}
        await door.json("GET", "/v1/jobs", headers=cookie)
        again = await door.json("PUT", PATH, 401, headers=bearer(told["code"]))
        assert again["code"] == "unauthorized"
        assert (await made(door, **cookie))["code"], "who came in by a code can invite as well"
        ring.remove("phone")
        await door.json("GET", "/v1/jobs", 401, headers=cookie)


async def test_a_code_dies_with_its_key(open_door: OpenDoor, tmp_path: Path) -> None:
    """A key that is taken back takes the codes along that it made."""
    ring = Keyring(tmp_path / "data/keys.json")
    key = ring.add("phone")
    ring.add("other")
    async with open_door() as door:
        code = (await made(door, **bearer(key)))["code"]
        ring.remove("phone")
        await door.json("PUT", PATH, 401, headers=bearer(code))


async def test_a_code_is_no_key(open_door: OpenDoor, tmp_path: Path) -> None:
    """It opens the one route that trades it; nor is a key a code, nor may another site send one."""
    key = Keyring(tmp_path / "data/keys.json").add("phone")
    async with open_door() as door:
        code = (await made(door, **bearer(key)))["code"]
        await door.json("GET", "/v1/jobs", 401, headers=bearer(code))
        await door.json("POST", "/v1/session", 401, headers=bearer(code))
        await door.json("PUT", PATH, 401, headers=bearer(key))
        evil = {**bearer(code), "Origin": "http://evil.example"}
        await door.json("PUT", PATH, 403, headers=evil)
        async with door.ask("PUT", PATH, headers=bearer(code)) as got:
            assert got.status == 204


async def test_two_who_show_a_code_at_once(open_door: OpenDoor, tmp_path: Path) -> None:
    """One of them comes in."""
    key = Keyring(tmp_path / "data/keys.json").add("phone")
    async with open_door() as door:
        code = (await made(door, **bearer(key)))["code"]

        async def enter() -> int:
            async with door.ask("PUT", PATH, headers=bearer(code)) as got:
                return got.status

        assert sorted(await asyncio.gather(enter(), enter())) == [204, 401]


async def test_without_a_key_there_is_no_code(door: Door) -> None:
    """Nothing to trade; and nobody else reaches a loopback address."""
    assert await made(door) == {"code": None, "expires_s": None, "address": None}
    await door.json("PUT", PATH, 401, headers=bearer("guess"))


async def test_where_others_reach_the_door(open_door: OpenDoor, tmp_path: Path) -> None:
    """The machine's address and the port, or the public one."""
    key = Keyring(tmp_path / "data/keys.json").add("phone")
    async with open_door(host="0.0.0.0") as door:
        address = (await made(door, **bearer(key)))["address"]
        assert address.startswith("http://") and address.endswith(f":{door.port}")
        assert "0.0.0.0" not in address
    async with open_door({"daemon": {"public_url": "https://pics.example/edits/"}}) as door:
        assert (await made(door, **bearer(key)))["address"] == "https://pics.example/edits"
