"""The palette package, packed by npm and installed in a real Node-RED."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.flows import CONFIG, files, flow, one, run, shows_edit
from tests.e2e.node_red import NodeRed
from tests.plugins.mqtt.broker import Broker
from tests.plugins.mqtt.house import House, noise, opened, png, wait
from vellumd.testing import free_port

PALETTE = CONFIG / "palette"
KIND = "vellumd-edit"
HTTP_KEY = "a-key-of-this-test-that-is-long-enough"


class Bench:
    """The example flow in a Node-RED, at a daemon with MQTT and HTTP. `said` are its statuses."""

    def __init__(self, folder: Path, node_red: NodeRed, broker: Broker) -> None:
        self.folder, self.node_red = folder, node_red
        self.port = free_port()
        (folder / "key").write_text(HTTP_KEY)
        http = {"enabled": True, "port": self.port, "api_key_file": str(folder / "key")}
        self.house = House(folder, broker, {}, more={"plugins.http": http})
        self.nodes = flow("palette/examples/edit", broker.port, **files(folder))
        self.set(prompt="invert", timeout=20)
        tab, node = self.nodes[0]["id"], one(self.nodes, KIND)
        spy = {"type": "debug", "active": True, "console": True, "complete": "status.text"}
        self.nodes += [
            {
                "id": "a1",
                "z": tab,
                "type": "status",
                "scope": [node],
                "wires": [["a2"]],
            },
            {"id": "a2", "z": tab, "name": "said", "targetType": "msg", **spy, "wires": []},
        ]

    def set(self, **fields: Any) -> None:
        """Fill in the node's form."""
        next(node for node in self.nodes if node["type"] == KIND).update(fields)

    def press(self, picture: bytes) -> Path:
        """Send a picture; where its edit will lie."""
        result = self.folder / "out.png"
        result.unlink(missing_ok=True)
        (self.folder / "in.png").write_bytes(picture)
        self.node_red.press(one(self.nodes, "inject"))
        return result

    @property
    def said(self) -> list[str]:
        """Texts that the node showed below itself."""
        return re.findall(r"\[debug:said\] (.*)", self.node_red.log())


@pytest.fixture
def bench(tmp_path: Path, node_red: NodeRed, broker: Broker) -> Iterator[Bench]:
    made = Bench(tmp_path, node_red, broker)
    yield made
    made.house.close()


def test_ready_to_publish(palette: Path) -> None:
    """What npm publishes is whole: licence, page, example, and what Node-RED looks for."""
    package = palette / "@vellumd" / "node-red-vellumd"
    told = json.loads((package / "package.json").read_text())
    assert "node-red" in told["keywords"] and told["license"] == "Apache-2.0"
    (script,) = told["node-red"]["nodes"].values()
    page = (package / script).with_suffix(".html").read_text()
    assert f'data-help-name="{KIND}"' in page and f'registerType("{KIND}"' in page
    assert {file.name for file in package.iterdir() if file.is_file()} == {
        "LICENSE", "README.md", "package.json", "vellumd-edit.js", "vellumd-edit.html",
        "http.js", "request.js",
    }  # fmt: skip
    assert (package / "examples" / "edit.json").exists()
    assert (package / "LICENSE").read_text() == (CONFIG.parents[1] / "LICENSE").read_text()


def test_edits_with_steps_in_its_status(bench: Bench) -> None:
    """A real PNG in, its edit out; each step is shown, errors are caught, words stay short."""
    listed = bench.node_red.ask("GET", "/nodes", headers={"Accept": "application/json"})
    assert KIND in [kind for one in json.loads(listed) for kind in one["types"]]
    picture = run(bench.node_red, bench.nodes, bench.folder)
    bench.house.daemon.hold()
    result = bench.press(picture)
    wait(lambda: "step 1/8" in bench.said, "the step")
    bench.house.daemon.release()
    wait(lambda: shows_edit(result, picture), "the edit")
    wait(lambda: bench.said[-1].startswith("done in"), "the last status")
    bench.press(b"no picture")
    wait(lambda: "[debug:failed]" in bench.node_red.log(), "the error")
    assert "bad_image" in bench.said
    own = [text for text in bench.said if not text.startswith("node-red:")]
    assert all(len(text) < 20 for text in own), own


def test_large_pictures_take_the_other_door(bench: Bench) -> None:
    """Without its address they are refused; with it, they go and come by HTTP as they are."""
    picture = noise(2_500_000)
    run(bench.node_red, bench.nodes, bench.folder)
    bench.press(picture)
    wait(lambda: "give the node vellumd's HTTP address" in bench.node_red.log(), "the refusal")
    bench.set(url=f"http://127.0.0.1:{bench.port}/", credentials={"key": HTTP_KEY})
    bench.node_red.deploy(bench.nodes)
    result = bench.press(picture)
    wait(lambda: shows_edit(result, picture), "the edit")
    edit = opened(result.read_bytes())
    assert (edit.format, edit.size) == ("PNG", opened(picture).size)
    assert {"uploads", "fetches"} <= set(bench.said)


def test_through_restarts_of_everybody(bench: Bench) -> None:
    """Pressed while the broker is away; Node-RED and daemon die while the job runs."""
    run(bench.node_red, bench.nodes, bench.folder)
    house, picture = bench.house, png(40, 40, (200, 10, 90))
    house.broker.kill()
    wait(lambda: "Disconnected from broker" in bench.node_red.log(), "the broker to be missed")
    result = bench.press(picture)
    wait(lambda: "broker is away" in bench.said, "the status")
    house.daemon.hold()
    house.broker.start()
    wait(lambda: house.daemon.count("executed") == 2, "the job to run")
    house.sender.ask("status")
    bench.node_red.close()
    house.daemon.kill()
    house.daemon.release()
    house.daemon.start()
    wait(lambda: house.daemon.count("done") == 2, "the job to end")
    bench.node_red.start()
    wait(lambda: shows_edit(result, picture), "the answer that waited")
    assert len(house.daemon.jobs()) == 2


def test_without_a_broker(node_red: NodeRed, tmp_path: Path) -> None:
    """A node that was never filled in says so, below itself and for each message."""
    nodes = flow("palette/examples/edit", 0, **files(tmp_path))
    (tmp_path / "in.png").write_bytes(png())
    nodes = [node for node in nodes if node["type"] != "mqtt-broker"]
    next(node for node in nodes if node["type"] == KIND)["broker"] = ""
    node_red.deploy(nodes)
    node_red.press(one(nodes, "inject"))
    wait(lambda: "choose one in this node's form" in node_red.log(), "the error")


def test_without_an_answer(bench: Bench) -> None:
    """After the time-out that is an error; the answer comes all the same when there is one."""
    bench.set(timeout=0.5)
    bench.house.daemon.hold()
    picture = png(40, 40, (200, 10, 90))
    bench.node_red.deploy(bench.nodes)
    result = bench.press(picture)
    wait(lambda: "no answer within 0.5 s" in bench.node_red.log(), "the time-out")
    bench.house.daemon.release()
    wait(lambda: shows_edit(result, picture), "the late answer")
