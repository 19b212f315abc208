"""What doctor finds at a broker, and that the shipped configuration is a good one."""

from __future__ import annotations

import asyncio
import subprocess
from pathlib import Path

import pytest

from tests.plugins.mqtt.broker import ROOT, Broker
from tests.plugins.mqtt.house import House, png
from tests.plugins.mqtt.sender import Sender
from vellumd.testing import DaemonProcess, free_port
from vellumd_mqtt import checks
from vellumd_mqtt.link import is_near
from vellumd_mqtt.plugin import MqttSettings


async def findings(port: int, conf: Path, **settings: object) -> dict[bool, str]:
    """The texts of what is well and of what is to mend."""
    found = await checks.broker(MqttSettings(port=port, **settings), conf)  # type: ignore[arg-type]
    return {ok: "\n".join(check.text for check in found if check.ok is ok) for ok in (True, False)}


@pytest.mark.parametrize("protocol", ["5", "311"])
async def test_a_good_broker(broker: Broker, protocol: str) -> None:
    """Reached, keeps sessions and messages; its version is told."""
    told = await findings(broker.port, broker.folder / "mosquitto.conf", protocol=protocol)
    assert not told[False]
    assert "mosquitto version" in told[True] and "keeps sessions" in told[True]
    assert "keeps acknowledged messages" in told[True]


async def test_what_a_broker_would_lose_or_cut(tmp_path: Path) -> None:
    """Without persistence: each missing line is named; the limit that it tells is told."""
    broker = Broker(tmp_path, "max_packet_size 500000")
    conf = tmp_path / "other.conf"
    conf.write_text(f"include_dir {tmp_path}/more\n")
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "a.conf").write_text("# nothing\npersistence true\n")
    told = await findings(broker.port, conf)
    broker.close()
    assert "autosave_on_changes true, autosave_interval 1" in told[False]
    assert "persistence true" not in told[False]
    assert "500,000" in told[True] and "more than 1000 messages" in told[True]


async def test_no_broker() -> None:
    """Not there is to be mended."""
    told = await findings(free_port(), Path("nowhere"))
    assert "Start it" in told[False]


def test_where_passwords_may_go() -> None:
    """In the clear only to this machine and private networks."""
    for near in ("127.0.0.1", "::1", "192.168.1.5", "10.0.0.1", "fe80::1%eth0", "169.254.1.1"):
        assert is_near(near)
    for far in ("8.8.8.8", "2606:4700:4700::1111"):
        assert not is_near(far)


@pytest.mark.parametrize("allowed", [False, True])
def test_a_password_to_a_public_broker(tmp_path: Path, allowed: bool) -> None:
    """Refused without TLS, unless it is allowed; doctor refuses it, too."""
    (tmp_path / "secret").write_text("x\n")
    settings = {"host": "192.0.2.1" if allowed else "8.8.8.8", "username": "u",
                "password_file": tmp_path / "secret"}  # fmt: skip
    daemon = DaemonProcess(tmp_path, "mqtt", {**settings, "allow_plaintext": allowed})
    daemon.start()
    text = (tmp_path / "log").read_text()
    daemon.close()
    assert ("plugins.mqtt.allow_plaintext = true" in text) is not allowed
    if not allowed:
        told = asyncio.run(findings(1883, Path("nowhere"), **settings))
        assert "allow_plaintext" in told[False]


def test_the_shipped_configuration(tmp_path: Path) -> None:
    """config/mosquitto.conf and its ACL carry an edit from a user to vellumd and back."""
    for name in ("vellumd", "nodered"):
        words = ["-c", "-b"] if name == "vellumd" else ["-b"]
        subprocess.run(
            ["mosquitto_passwd", *words, str(tmp_path / "passwd"), name, "secret"], check=True
        )
    text = (ROOT / "config/mosquitto.conf").read_text()
    port = free_port()
    text = text.replace("listener 1883", f"listener {port} 127.0.0.1")
    text = text.replace("/etc/mosquitto/passwd", str(tmp_path / "passwd"))
    text = text.replace("/etc/mosquitto/vellumd.acl", str(ROOT / "config/mosquitto.acl"))
    broker = Broker(tmp_path, whole=text, port=port)
    (tmp_path / "secret").write_text("secret\n")
    sender = Sender(broker.port, user=("nodered", "secret"))
    house = House(
        tmp_path,
        broker,
        {"username": "vellumd", "password_file": tmp_path / "secret"},
        sender=sender,
    )
    try:
        sender.edit(png(), job_id="x")
        assert house.answer("x")["status"] == "ok"
        assert sender.next("info").json["max_payload"] > 16_000_000
        for user, right in (("vellumd", True), ("nodered", False)):
            name = {"username": user, "password_file": tmp_path / "secret"}
            told = asyncio.run(findings(port, broker.folder / "mosquitto.conf", **name))
            assert ("it takes what vellumd sends" in told[True]) is right
            assert ("config/mosquitto.acl" in told[False]) is not right
            assert "max_queued_messages" not in told[True]
    finally:
        house.close()
        broker.close()
