"""The flows of config/node-red, deployed to a real Node-RED: a picture in, its edit out."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.node_red import ROOT, NodeRed
from tests.plugins.mqtt.broker import Broker
from tests.plugins.mqtt.house import House, noise, opened, png, wait
from vellumd.testing import DaemonProcess, free_port

FLOWS = sorted((ROOT / "config" / "node-red").glob("*.json"))
BUILT_IN = {
    "tab", "comment", "inject", "file in", "file", "function", "http request", "mqtt in",
    "mqtt out", "mqtt-broker", "catch", "debug",
}  # fmt: skip


@pytest.fixture
def node_red(tmp_path: Path) -> Iterator[NodeRed]:
    made = NodeRed(tmp_path)
    yield made
    made.close()


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Broker]:
    made = Broker(tmp_path)
    yield made
    made.close()


def flow(name: str, port: int, **env: str) -> list[dict[str, Any]]:
    """A shipped flow with this test's values, as its user sets them."""
    nodes: list[dict[str, Any]] = json.loads((ROOT / f"config/node-red/{name}.json").read_text())
    for node in nodes:
        if node["type"] == "mqtt-broker":
            node |= {"broker": "127.0.0.1", "port": str(port)}
        if node["type"] == "debug":
            node["console"] = True
        for pair in node.get("env", ()):
            pair["value"] = env.get(pair["name"], pair["value"])
    return nodes


def one(nodes: list[dict[str, Any]], kind: str) -> str:
    """Id of the only node of a kind."""
    (found,) = [node["id"] for node in nodes if node["type"] == kind]
    return str(found)


def shows_edit(file: Path, picture: bytes) -> bool:
    """Whether the file is whole and the stand-in's edit."""
    try:
        edit = opened(file.read_bytes())
    except (OSError, SyntaxError):
        return False
    found, asked = edit.convert("RGB").getpixel((1, 1)), opened(picture).getpixel((1, 1))
    return all(abs(f + a - 255) < 3 for f, a in zip(found, asked, strict=True))  # type: ignore[arg-type]


@pytest.mark.parametrize("file", FLOWS, ids=lambda file: file.stem)
def test_flows_are_importable(file: Path) -> None:
    """Built-in nodes only, a comment in each, QoS 1, and a time-out where HTTP waits."""
    nodes = json.loads(file.read_text())
    kinds = [node["type"] for node in nodes]
    assert set(kinds) <= BUILT_IN and "comment" in kinds
    assert all(node["qos"] == "1" for node in nodes if node["type"] == "mqtt out")
    code = "".join(node.get("func", "") for node in nodes)
    assert ("requestTimeout" in code) == ("http request" in kinds)
    assert ("max_payload" in code) == ("mqtt out" in kinds)


@pytest.mark.parametrize("name", ["http-generate", "http-job"])
def test_http_flows(tmp_path: Path, node_red: NodeRed, name: str) -> None:
    """A real PNG in, the edited PNG out."""
    port = free_port()
    daemon = DaemonProcess(tmp_path, "http", {"port": port})
    daemon.start()
    try:
        run(node_red, flow(name, 0, **files(tmp_path), URL=f"http://127.0.0.1:{port}"), tmp_path)
    finally:
        daemon.close()


@pytest.mark.parametrize("name", ["mqtt-3.1.1", "mqtt-5"])
def test_mqtt_flows(tmp_path: Path, node_red: NodeRed, broker: Broker, name: str) -> None:
    """The same through the broker; too large a picture is told before it is sent."""
    house = House(tmp_path, broker, {})
    try:
        nodes = flow(name, broker.port, **files(tmp_path))
        run(node_red, nodes, tmp_path)
        (tmp_path / "in.png").write_bytes(noise(2_500_000))
        node_red.press(one(nodes, "inject"))
        log = node_red.folder / "log"
        wait(lambda: "more than the broker takes" in log.read_text(), "the refusal")
        assert len(house.daemon.jobs()) == 1
    finally:
        house.close()


def files(folder: Path) -> dict[str, str]:
    """Where the flow reads and writes."""
    return {
        "PICTURE": str(folder / "in.png"),
        "RESULT": str(folder / "out.png"),
        "PROMPT": "invert",
    }


def run(node_red: NodeRed, nodes: list[dict[str, Any]], folder: Path) -> None:
    """Deploy, press the button, wait for the edit."""
    picture = png(64, 48, (10, 20, 30))
    (folder / "in.png").write_bytes(picture)
    node_red.deploy(nodes)
    button = one(nodes, "inject")
    log = node_red.folder / "log"

    def edited() -> bool:
        return shows_edit(folder / "out.png", picture)

    node_red.press(button)
    try:
        wait(edited, "the edit")
    except TimeoutError:
        raise AssertionError(log.read_text()) from None
    assert opened((folder / "out.png").read_bytes()).format == "PNG"
