"""The MQTT door keeps what every door promises, with a real broker in between.

A sender knows that a request is taken by its first progress. It is the broker that
confirms a reply: a proxy withholds what it says until the contract wants it said.
"""

from __future__ import annotations

import base64
import json
import time
from pathlib import Path
from typing import Any

from tests.plugins.mqtt.broker import Broker
from tests.plugins.mqtt.proxy import PUBACK, PUBLISH, Packet, Proxy
from tests.plugins.mqtt.sender import Got, Sender, b64
from vellumd.testing import Refused, Reply, TransportContract

ACCEPTED_S = 15.0


class Contract(TransportContract):
    """A sender with a `job_id`, at a broker that confirms when told to."""

    plugin = "mqtt"
    protocol = "5"

    def settings(self, folder: Path) -> dict[str, object]:
        self.broker = Broker(folder)
        self.proxy = Proxy(self.broker.port)
        self.proxy.up, self.proxy.down = self.watch, self.withhold
        self.sent: dict[int, str] = {}
        self.withheld: dict[str, Packet] = {}
        self.sender = Sender(self.broker.port, five=self.protocol == "5")
        self.taken: dict[str, int] = {}
        return {"port": self.proxy.port, "protocol": self.protocol}

    def hang_up(self) -> None:
        self.sender.close()
        self.proxy.close()
        self.broker.close()

    # the broker's part

    def watch(self, packet: Packet) -> bool:
        """Note which reply goes under which packet id."""
        if packet.kind == PUBLISH and packet.qos:
            key = None
            if "/response/edit" in packet.topic and b'"data":{' in packet.payload:
                key = json.loads(packet.payload[packet.payload.index(b"{") :])["client_job_id"]
            self.sent[packet.mid] = key or ""
        return True

    def withhold(self, packet: Packet) -> bool:
        """Pass all but the acknowledgement of a reply that was not confirmed."""
        key = self.sent.get(packet.mid) if packet.kind == PUBACK else None
        if key:
            self.withheld[key] = packet
        return not key

    # the sender's part

    def send(self, key: str, picture: bytes, prompt: str) -> None:
        start = len(self.sender.got)
        edit = {"image": b64(picture), "prompt": prompt, "job_id": key}
        self.sender.publish("request/edit", edit)

        def told(got: Got) -> bool:
            if "/progress/" in got.topic:
                return got.json.get("client_job_id") == key
            return got.topic.endswith("/response/edit") and got.json.get("client_job_id") == key

        end = time.monotonic() + ACCEPTED_S
        while self.daemon.alive and time.monotonic() < end:
            for got in self.sender.got[start:]:
                if told(got):
                    if got.json.get("error") and got.json["job_id"] is None:
                        raise Refused(got.json["error"]["code"])
                    return
            time.sleep(0.005)
        raise TimeoutError("the daemon did not take it")

    def receive(self, key: str) -> Reply:
        seen = self.taken.get(key, 0)

        def ours() -> list[dict[str, Any]]:
            answers = [g for g in list(self.sender.got) if g.topic.endswith("/response/edit")]
            return [a.json for a in answers if a.json.get("client_job_id") == key]

        end = time.monotonic() + ACCEPTED_S
        while len(found := [a for a in ours() if a["job_id"]]) <= seen:
            if time.monotonic() > end:
                raise TimeoutError("no reply")
            time.sleep(0.005)
        self.taken[key] = seen + 1
        answer = found[seen]
        picture = base64.b64decode((answer["data"] or {}).get("image", ""))
        return Reply(answer["job_id"], picture, (answer["error"] or {}).get("code", ""))

    def confirm(self, key: str) -> None:
        """Let the broker acknowledge; an answer to what comes after says that it was heard."""
        end = time.monotonic() + ACCEPTED_S
        while key not in self.withheld:
            assert time.monotonic() < end, "the broker was not asked"
            time.sleep(0.005)
        self.withheld.pop(key).pass_on()
        self.sender.ask("status")

    def send_rubbish(self) -> None:
        for payload in (b"", b"\xff\xfe", b"{", b"[]", b'{"images": 1}', b"[" * 100_000, b"{" * 9):
            self.sender.publish("request/edit", payload)
        self.sender.publish("request/nonsense/at/all", b"{}")
        self.sender.publish("request/edit", b"{}", qos=2)


class TestMqtt5(Contract):
    """The daemon speaks MQTT 5."""


class TestMqtt311(Contract):
    """The daemon and the sender speak MQTT 3.1.1."""

    protocol = "311"
