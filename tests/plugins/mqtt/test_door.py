"""What users see of the MQTT door: requests of every kind, answers, presence, commands."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Callable

import psutil
import pytest

from tests.plugins.mqtt.house import House, opened, png, wait
from tests.plugins.mqtt.sender import Sender, b64

PNG = png()


def test_json_in_json_out(house: House) -> None:
    """A JSON request is answered with the picture, what it sent to be echoed, and the job."""
    house.sender.edit(PNG, transaction={"n": 1}, reply_to="kitchen/tablet", meta={"a": 1})
    answer = house.sender.next("response/edit/kitchen/tablet").json
    assert answer["status"] == "ok" and answer["error"] is None
    assert answer["transaction"] == {"n": 1}
    assert opened(answer["data"]["image"]).size == (48, 32)
    assert answer["data"]["id"] == answer["job_id"] and answer["data"]["status"] == "done"
    assert answer["data"]["meta"] == {"a": 1} and answer["data"]["source"] == "mqtt"


def test_several_results(house: House) -> None:
    """With n > 1 `image` is the first and `images` holds all."""
    house.sender.edit(PNG, n=3)
    data = house.answer()["data"]
    assert len(data["images"]) == 3 and data["image"] == data["images"][0]
    house.sender.edit(PNG, n=2, reply="binary")
    answer = house.answer()
    assert answer["data"]["result_topic"].endswith(f"/result/{answer['job_id']}")
    for topic in (f"result/{answer['job_id']}", f"result/{answer['job_id']}/2"):
        assert opened(house.sender.next(topic).payload).size == (48, 32)


def test_an_old_sender(house: House, old_sender: Sender) -> None:
    """MQTT 3.1.1: raw bytes on a preset's topic, JSON back; JSON in, raw bytes back."""
    old_sender.publish("request/edit/balanced", PNG)
    answer = old_sender.next("response/edit").json
    assert answer["error"]["code"] == "bad_request" and "prompt" in answer["error"]["message"]
    old_sender.edit(PNG, reply="binary", transaction="x")
    answer = old_sender.next("response/edit").json
    assert "image" not in answer["data"] and answer["transaction"] == "x"
    assert opened(old_sender.next(f"result/{answer['job_id']}").payload).size == (48, 32)


def test_raw_bytes_of_mqtt_5(house: House) -> None:
    """contentType, parameters as user properties, an answer with correlation data."""
    house.sender.publish(
        "request/edit/original",
        PNG,
        ContentType="image/png",
        ResponseTopic="vellumd/x/me",
        CorrelationData=b"\x00\xff",
        UserProperty=[("prompt", "invert"), ("reply", "binary"), ("steps", "4"), ("seed", "7"),
                      ("transaction", "t"), ("meta", '{"a": [1]}')],
    )  # fmt: skip
    got = house.sender.until(lambda got: got.topic == "vellumd/x/me")
    assert got.type == "image/png" and got.correlation == b"\x00\xff"
    assert opened(got.payload).size == (48, 32)
    assert dict(got.properties)["transaction"] == "t"
    answer = house.answer()
    assert dict(got.properties)["job_id"] == answer["job_id"]
    request = answer["data"]["request"]
    assert request["preset"] == "original" and request["steps"] == 4 and request["seed"] == 7
    assert answer["data"]["meta"] == {"a": [1]}


def test_errors_of_mqtt_5_go_to_the_response_topic(house: House) -> None:
    """A refusal is JSON there too."""
    house.sender.publish("request/edit", b"no picture", ResponseTopic="vellumd/x/me",
                         CorrelationData=b"c", UserProperty=[("prompt", "p")])  # fmt: skip
    got = house.sender.until(lambda got: got.topic == "vellumd/x/me")
    assert got.type == "application/json" and got.correlation == b"c"
    assert got.json["status"] == "error" and got.json["job_id"] is None
    assert got.json["error"]["code"] == "bad_image"


def test_answers_go_only_where_they_may(house: House) -> None:
    """A response topic outside of `reply_prefixes`, or among vellumd's own, gets nothing."""
    edit = {"image": b64(PNG), "prompt": "invert"}
    topics = [
        "elsewhere/x", "$SYS/x", "vellumd/main/request/edit", "vellumd/main/request",
        "vellumd/other/request/edit", "vellumd/main/state",
    ]  # fmt: skip
    for topic in topics:
        house.sender.publish("request/edit", edit, ResponseTopic=topic)
        assert house.answer()["status"] == "ok"
    assert house.sender.ask("status")["data"]["queued"] == 0
    assert len(house.daemon.jobs()) == len(topics)
    state = [got.payload for got in house.sender.got if got.topic == "vellumd/main/state"]
    assert state == [b"online"]


def test_progress(house: House) -> None:
    """The sender is told that its job is taken, how far it is, and that it has ended."""
    house.daemon.hold()
    house.sender.edit(PNG, job_id="mine", transaction="t")
    first = house.sender.until(lambda got: "/progress/" in got.topic).json
    assert first["client_job_id"] == "mine" and first["transaction"] == "t"
    assert first["status"] in ("queued", "running")
    house.daemon.release()
    topic = f"progress/{first['job_id']}"
    while house.sender.next(topic).json["status"] != "done":
        pass


def test_presets_saved_elsewhere(make_house: Callable[..., House]) -> None:
    """One saved over HTTP is told in the retained info, and is a topic at once."""
    house = make_house(more={"plugins.http": {"enabled": "true", "port": 0}})
    at = json.loads((house.daemon.folder / "data" / "daemon.json").read_bytes())["url"]
    body = json.dumps({"prompt": "invert", "steps": 3}).encode()
    put = urllib.request.Request(f"{at}/v1/presets/mine", body, method="PUT")
    with urllib.request.urlopen(put) as got:
        assert got.status == 201
    house.sender.until(lambda got: got.topic.endswith("/info") and "mine" in got.json["presets"])
    house.sender.publish("request/edit/mine", PNG)
    request = house.answer()["data"]["request"]
    assert (request["preset"], request["prompt"], request["steps"]) == ("mine", "invert", 3)


def test_presence(house: House) -> None:
    """state, info and queue are retained; a clean stop says offline, a kill too."""
    house.sender.close()
    late = house.sender = Sender(house.broker.port)
    assert late.next("state").payload == b"online"
    info = late.next("info").json
    assert info["max_payload"] == 1_990_000 and info["limits"]["max_images"] == 4
    assert {"version", "model", "presets", "default_preset"} <= info.keys()
    assert late.next("queue").json["paused"] is False
    assert house.daemon.stop(15) == 0
    assert late.next("state").payload == b"offline"
    house.daemon.start()
    assert late.next("state").payload == b"online"
    house.daemon.kill()
    assert late.next("state").payload == b"offline"


def test_commands(house: House) -> None:
    """cancel and status by either id; pause, resume, unload; errors have codes."""
    ask = house.sender.ask
    assert ask("pause", "")["status"] == "ok"
    assert ask("status")["data"]["paused"] is True
    wait(lambda: any(g.topic.endswith("/queue") and g.json["paused"]
                     for g in list(house.sender.got)), "queue to say paused")  # fmt: skip
    house.sender.edit(PNG, job_id="mine")
    told = house.sender.until(lambda got: "/progress/" in got.topic).json
    assert ask("status", "mine")["job_id"] == told["job_id"]
    assert ask("status", {"job_id": told["job_id"], "transaction": 5})["transaction"] == 5
    assert ask("cancel", {"job_id": "mine"})["data"]["status"] == "cancelled"
    assert house.answer("mine")["error"]["code"] == "cancelled"
    assert ask("pause", "OFF")["data"]["paused"] is False
    house.sender.edit(PNG)
    assert house.sender.until(
        lambda g: g.topic.endswith("/response/edit") and g.json["status"] == "ok"
    )
    assert ask("unload")["status"] == "ok"
    assert ask("resume")["data"]["paused"] is False
    assert ask("cancel", "nobody")["error"]["code"] == "not_found"
    assert ask("cancel")["error"]["code"] == "bad_request"
    assert ask("status", {"id": "x"})["error"]["code"] == "bad_request"
    assert ask("status", b"\xff")["error"]["code"] == "bad_request"
    house.sender.publish("request/pause/later")
    assert "no levels" in house.sender.next("response/pause").json["error"]["message"]
    assert ask("status")["data"]["paused"] is False


WRONG: list[tuple[dict[str, object], str]] = [
    ({"image": "http://x/y.png", "prompt": "p"}, "URL"),
    ({"image": 5, "prompt": "p"}, "images"),
    ({"image": "*", "prompt": "p"}, "base64"),
    ({"images": [b64(PNG)], "image": b64(PNG), "prompt": "p"}, "two names"),
    ({"image": b64(PNG), "prompt": "p", "nonsense": 1}, "nonsense"),
    ({"image": b64(PNG), "prompt": "p", "reply": "fax"}, "reply"),
    ({"image": b64(PNG), "prompt": "p", "reply_to": "a/#"}, "reply_to"),
    ({"image": b64(PNG), "prompt": "p", "job_id": "x" * 65}, "job_id"),
    ({"image": b64(PNG), "prompt": "p", "job_id": ""}, "job_id"),
    ({"image": b64(PNG), "prompt": "p", "transaction": "x" * 2000}, "transaction"),
    ({"image": b64(PNG), "prompt": "\ud800"}, "Unicode"),
    ({"image": b64(PNG), "prompt": "p", "meta": "x" * 300_000}, "KiB"),
]


def test_what_is_wrong_is_named(house: House) -> None:
    """Each refusal names the field and is answered where the sender listens."""
    for fields, word in WRONG:
        house.sender.publish("request/edit", json.dumps({"transaction": "t", **fields}).encode())
        answer = house.answer()
        assert answer["error"]["code"] == "bad_request", fields
        assert word in answer["error"]["message"]
        if fields.get("transaction") is None:
            assert answer["transaction"] == "t"


@pytest.mark.parametrize("field", ["transaction", "meta"])
def test_no_answer_holds_what_json_cannot(house: House, field: str) -> None:
    """1e999 is read as infinity; echoed, it would be an answer that no sender can parse."""
    text = json.dumps({"image": b64(PNG), "prompt": "p", field: [0]}).replace("[0]", "[-1e999]")
    house.sender.publish("request/edit", text.encode())
    assert "too large" in house.answer()["error"]["message"]


def test_json_that_costs_memory(house: House) -> None:
    """Neither millions of elements nor a wide character beside megabytes are read."""
    process = psutil.Process(house.daemon.pid)
    before = process.memory_info().rss
    for payload, word in (
        ('{"prompt": [' + "1," * 5_000_000 + "1]}", "elements"),
        ('{"prompt": "' + "x" * 20_000_000 + '\U0001f600"}', "characters"),
    ):
        house.sender.publish("request/edit", payload.encode())
        assert word in house.answer()["error"]["message"]
    assert process.memory_info().rss - before < 256 << 20


ENTITY = {
    "name", "unique_id", "icon", "device", "origin",
    "availability_topic", "payload_available", "payload_not_available",
}  # fmt: skip
KNOWN = {
    "image": {"image_topic", "content_type"},
    "sensor": {"state_topic", "value_template", "unit_of_measurement", "state_class"},
    "switch": {"command_topic", "state_topic", "payload_on", "payload_off", "value_template",
               "qos"},
    "binary_sensor": {"state_topic", "payload_on", "payload_off", "device_class"},
}  # fmt: skip
"""Keys that each component's discovery schema has (homeassistant/components/mqtt, 2024.3)."""


def test_home_assistant_is_told(make_house: Callable[..., House]) -> None:
    """Discovery is retained, and its topics are those that the door serves."""
    house = make_house(discovery=True)
    sender = Sender(house.broker.port, base="homeassistant")
    sender._client.subscribe([("homeassistant/#", 1), ("vellumd/main/last", 1)])
    try:
        configs = {}
        while len(configs) < 4:
            known = len(configs)
            wait(lambda n=known: len({g.topic for g in sender.got}) > n, "the configurations")
            configs = {g.topic.split("/")[1]: g.json for g in sender.got if g.retain or g.payload}
        assert set(configs) == {"image", "sensor", "switch", "binary_sensor"}
        for kind, config in configs.items():
            assert config["device"]["identifiers"] == ["vellumd_main"] and config["unique_id"]
            assert set(config) <= ENTITY | KNOWN[kind]
            assert set(config["device"]) <= {
                "identifiers", "name", "manufacturer", "model", "sw_version",
            }  # fmt: skip
            assert set(config["origin"]) <= {"name", "sw_version", "support_url"}
        queue = configs["sensor"]
        assert queue["state_topic"] == "vellumd/main/queue" and "queued" in queue["value_template"]
        switch = configs["switch"]
        assert switch["availability_topic"] == "vellumd/main/state"
        house.sender.publish(switch["command_topic"].removeprefix("vellumd/main/"), "ON")
        assert house.sender.next("response/pause").json["data"]["paused"] is True
        house.sender.publish(switch["command_topic"].removeprefix("vellumd/main/"), "OFF")
        house.sender.edit(PNG)
        got = sender.until(lambda g: g.topic == configs["image"]["image_topic"])
        assert opened(got.payload).format == "JPEG"
    finally:
        sender.close()
