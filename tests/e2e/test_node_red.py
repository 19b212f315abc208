"""The flows of config/node-red, deployed to a real Node-RED: a picture in, its edit out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.flows import CONFIG, files, flow, one, run, shows_edit
from tests.e2e.node_red import NodeRed
from tests.plugins.mqtt.broker import Broker
from tests.plugins.mqtt.house import House, noise, wait
from vellumd.testing import DaemonProcess, free_port

FLOWS = sorted(CONFIG.glob("*.json"))
BUILT_IN = {
    "tab", "comment", "inject", "file in", "file", "function", "http request", "mqtt in",
    "mqtt out", "mqtt-broker", "catch", "debug",
}  # fmt: skip


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
        nodes = flow(name, 0, **files(tmp_path), URL=f"http://127.0.0.1:{port}")
        picture = run(node_red, nodes, tmp_path)
        if name == "http-job":
            through_a_restart(node_red, nodes, daemon)
            wait(lambda: shows_edit(tmp_path / "out.png", picture), "the edit")
            assert "[debug:failed]" not in node_red.log()
    finally:
        daemon.close()


def through_a_restart(
    node_red: NodeRed, nodes: list[dict[str, Any]], daemon: DaemonProcess
) -> None:
    """Press the button, and kill vellumd while the job runs and is asked for."""
    result = Path(next(pair["value"] for pair in nodes[0]["env"] if pair["name"] == "RESULT"))
    result.unlink()
    daemon.hold()
    node_red.press(one(nodes, "inject"))
    wait(lambda: daemon.count("executed") == 2, "the job to run")
    daemon.kill()
    daemon.release()
    daemon.start()


@pytest.mark.parametrize("name", ["mqtt-3.1.1", "mqtt-5"])
def test_mqtt_flows(tmp_path: Path, node_red: NodeRed, broker: Broker, name: str) -> None:
    """The same through the broker, also while Node-RED dies; what is too large is not sent."""
    house = House(tmp_path, broker, {})
    try:
        nodes = flow(name, broker.port, **files(tmp_path))
        picture = run(node_red, nodes, tmp_path)
        button, result = one(nodes, "inject"), tmp_path / "out.png"
        result.unlink()
        house.daemon.hold()
        node_red.press(button)
        wait(lambda: house.daemon.count("executed") == 2, "the job to run")
        node_red.close()
        house.daemon.release()
        wait(lambda: house.daemon.count("done") == 2, "the job to end")
        node_red.start()
        wait(lambda: shows_edit(result, picture), "the answer that waited")
        (tmp_path / "in.png").write_bytes(noise(2_500_000))
        node_red.press(button)
        wait(lambda: "more than the broker takes" in node_red.log(), "the refusal")
        assert len(house.daemon.jobs()) == 2
    finally:
        house.close()
