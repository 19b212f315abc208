"""The section [plugins.queue]: what it takes, and what doctor says of it."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import pytest

from tests.plugins.queue.old_server import OldServer
from vellumd import sources
from vellumd.errors import ConfigError
from vellumd_queue.checks import check_servers
from vellumd_queue.client import Bounds, Client, ServerDownError, open_session
from vellumd_queue.plugin import ONLY, QueueSettings

URL = "http://queue.lan:8000"


def section(**keys: Any) -> QueueSettings:
    """A valid section; raises `ConfigError` for a wrong one."""
    return sources.validate_section(QueueSettings, keys, "plugins.queue")


def test_one_server_is_called_main() -> None:
    """With the machine's name as worker, and the usual names."""
    (name, server), *others = section(url=f"{URL}/").named().items()
    assert (name, server.url, server.worker) == (ONLY, URL, socket.gethostname())
    assert not others


def test_several_servers_have_their_own_keys(tmp_path: Path) -> None:
    """A token from its file, a mapping, a way of posting."""
    (tmp_path / "token").write_text("secret\nnot this")
    servers = {
        "a": {"url": URL, "token_file": str(tmp_path / "token"), "result": "multipart"},
        "b": {"url": URL, "map": {"job": "data"}, "heartbeat": 30},
    }
    named = section(servers=servers).named()
    assert named["a"].token is not None
    assert named["a"].token.get_secret_value() == "secret"
    assert "secret" not in repr(named)
    assert (named["b"].map.job, named["b"].heartbeat, named["b"].token) == ("data", 30, None)


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({}, "set either url or servers"),
        ({"url": URL, "servers": {"a": {"url": URL}}}, "set either url or servers"),
        ({"url": "queue.lan:8000"}, "http:// or https://"),
        ({"url": "http://me:secret@queue.lan"}, "token_file"),
        ({"url": "http://queue lan"}, "no space"),
        ({"url": "http://queue.lan\\x"}, "no backslash"),
        ({"url": "http://queue.lan\n"}, "no line break"),
        ({"url": "http://queue.lan:0"}, "a port from 1"),
        ({"url": URL, "map": {"next": "/api"}}, "a method and a path"),
        ({"url": URL, "map": {"next": "DELETE /api"}}, "a method and a path"),
        ({"url": URL, "map": {"fields": {"promt": "x"}}}, "promt is no field"),
        ({"url": URL, "map": {"answer": {"picture": "x"}}}, "picture is not one of"),
        ({"url": URL, "wroker": "x"}, "worker"),
        ({"url": URL, "heartbeat": 0}, "heartbeat"),
    ],
)
def test_wrong_sections_are_named(keys: dict[str, Any], said: str) -> None:
    """The text names what is wrong."""
    with pytest.raises(ConfigError, match=said):
        section(**keys)


async def test_doctor_connects_and_asks_nothing(old: OldServer) -> None:
    """One finding a server; no job is taken."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        dead = f"http://127.0.0.1:{probe.getsockname()[1]}"
    servers = {"alive": {"url": old.url}, "dead": {"url": dead}}
    alive, gone = await check_servers(section(servers=servers))
    assert alive.ok and "alive takes connections" in alive.text
    assert not gone.ok and "correct its url" in gone.text
    assert not old.calls


async def test_a_name_that_leads_to_a_clouds_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever owns it: it is not connected to, and door and doctor say why."""
    real = socket.getaddrinfo
    monkeypatch.setattr(
        socket, "getaddrinfo", lambda host, *a, **o: real("169.254.169.254", *a, **o)
    )
    settings = section(url=URL)
    (check,) = await check_servers(settings)
    assert not check.ok and "its name leads where no server may be" in check.text
    async with open_session() as session:
        client = Client(session, settings.named()[ONLY], Bounds(total_s=5))
        with pytest.raises(ServerDownError, match="a name that leads where no server may be"):
            await client.next()
