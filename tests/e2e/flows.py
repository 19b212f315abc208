"""Shipped flows with a test's values, deployed and run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.e2e.node_red import ROOT, NodeRed
from tests.plugins.mqtt.house import opened, png, wait

CONFIG = ROOT / "config" / "node-red"


def flow(name: str, port: int, **env: str) -> list[dict[str, Any]]:
    """A shipped flow with this test's values, as its user sets them."""
    nodes: list[dict[str, Any]] = json.loads((CONFIG / f"{name}.json").read_text())
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


def files(folder: Path) -> dict[str, str]:
    """Where the flow reads and writes."""
    return {
        "PICTURE": str(folder / "in.png"),
        "RESULT": str(folder / "out.png"),
        "PROMPT": "invert",
    }


def run(node_red: NodeRed, nodes: list[dict[str, Any]], folder: Path) -> bytes:
    """Deploy, press the button, wait for the edit of the picture that is returned."""
    picture = png(64, 48, (10, 20, 30))
    (folder / "in.png").write_bytes(picture)
    brokers = sum(node["type"] == "mqtt-broker" for node in nodes)
    connected = node_red.log().count("Connected to broker") + brokers
    node_red.deploy(nodes)
    # The stand-in answers at once: a request on its way before the subscriptions gets no reply.
    wait(lambda: node_red.log().count("Connected to broker") >= connected, "the broker")
    node_red.press(one(nodes, "inject"))
    try:
        wait(lambda: shows_edit(folder / "out.png", picture), "the edit")
    except TimeoutError:
        raise AssertionError(node_red.log()) from None
    assert opened((folder / "out.png").read_bytes()).format == "PNG"
    return picture
