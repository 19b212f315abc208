"""Faults of brokers, daemons and senders: nothing is lost, nothing runs twice."""

from __future__ import annotations

import asyncio
import json
import random
import re
import socket
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from paho.mqtt import client as paho
from paho.mqtt.enums import CallbackAPIVersion

from tests.plugins.mqtt.broker import ROOT, Broker
from tests.plugins.mqtt.house import House, noise, opened, png, seed, wait
from tests.plugins.mqtt.proxy import PUBLISH, Packet, Proxy
from tests.plugins.mqtt.sender import Sender, b64
from vellumd.testing import free_port
from vellumd_mqtt.connection import Connection, Message, Outgoing
from vellumd_mqtt.plugin import MqttSettings
from vellumd_mqtt.presence import PACE_S

PNG = png()
RETURN_S = 5.0
"""Seconds in which the daemon is online again after its broker is."""


def accepted(house: House, count: int) -> None:
    """Wait until so many jobs are on disk."""
    wait(lambda: house.daemon.count("queued") >= count, f"{count} jobs")


def test_broker_killed_in_mid_job(house: House) -> None:
    """The job goes on, and its answer is there when the broker is."""
    house.daemon.hold()
    house.sender.edit(PNG, job_id="one")
    wait(lambda: house.daemon.count("executed") == 1, "the job to run")
    house.broker.kill()
    house.daemon.release()
    wait(lambda: house.daemon.count("done") == 1, "the job to end")
    house.broker.start()
    assert house.answer("one")["status"] == "ok"
    assert house.daemon.count("executed") == 1


class TestForgetfulBroker:
    """A broker that keeps nothing over a restart, as without the shipped configuration."""

    @pytest.fixture
    def broker(self, tmp_path: Path) -> Iterator[Broker]:
        port = free_port()
        lines = f"listener {port} 127.0.0.1\nallow_anonymous true\npersistence false\n"
        made = Broker(tmp_path, whole=lines, port=port)
        yield made
        made.close()

    def test_an_answer_waits_for_who_returns_later(self, house: House) -> None:
        """Sent to nobody it would be gone: MQTT 5 tells, and it is sent again."""
        house.daemon.hold()
        house.sender.edit(PNG, job_id="one")
        wait(lambda: house.daemon.count("executed") == 1, "the job to run")
        house.sender.close()
        house.broker.kill()
        house.daemon.release()
        wait(lambda: house.daemon.count("done") == 1, "the job to end")
        house.broker.start()
        log = house.daemon.folder / "log"
        wait(lambda: log.read_text().count("connected to broker") == 2, "the daemon to be back")
        wait(lambda: house.rows("SELECT attempts FROM deliveries") != [(0,)], "it to be sent")
        house.sender = Sender(house.broker.port)
        assert house.answer("one")["status"] == "ok"
        house.confirmed()


def test_back_soon_after_the_broker(house: House) -> None:
    """Down for a while, the broker is found within five seconds of its return.

    In the best of three tries: others use the machine too.
    """
    took: list[float] = []
    while len(took) < 3 and min(took, default=RETURN_S + 1) > RETURN_S:
        house.broker.kill()
        time.sleep(4)  # by then the daemon looks as seldom as it ever does
        connected = (house.daemon.folder / "log").read_text().count("connected to broker")
        house.broker.start()
        began = time.monotonic()
        wait(
            lambda n=connected: (
                (house.daemon.folder / "log").read_text().count("connected to broker") > n
            ),
            "the daemon to be back",
        )
        took.append(time.monotonic() - began)
    assert min(took) <= RETURN_S
    house.sender.publish("request/edit", {"image": b64(PNG), "prompt": "invert", "job_id": "x"})
    assert house.answer("x")["status"] == "ok"


def test_killed_before_the_ack(house: House) -> None:
    """Committed but not acknowledged: the redelivery (dup=1, no job_id) is the same job."""
    house.daemon.kill_at("queued", lambda: house.sender.edit(PNG, transaction="t"))
    house.daemon.start()
    assert house.answer()["status"] == "ok"
    house.sender.ask("status")
    assert len(house.daemon.jobs()) == house.daemon.count("executed") == 1


def test_killed_after_the_ack(house: House) -> None:
    """Acknowledged and queued: the broker has forgotten it, the daemon has not."""
    house.daemon.hold()
    house.sender.edit(PNG, transaction="t")
    house.sender.until(lambda got: "/progress/" in got.topic)
    house.sender.ask("status")
    house.daemon.kill()
    house.daemon.release()
    house.daemon.start()
    assert house.answer()["transaction"] == "t"
    assert len(house.daemon.jobs()) == 1


def test_two_clients_with_one_job_id(house: House) -> None:
    """One job; each gets the result where it wants it; another request is refused."""
    house.daemon.hold()
    for name in ("a", "b"):
        house.sender.edit(PNG, job_id="one", reply_to=name)
    house.sender.edit(PNG, prompt="another", job_id="one", reply_to="c")
    assert house.sender.next("response/edit/c").json["error"]["code"] == "idempotency_mismatch"
    house.daemon.release()
    answers = [house.sender.next(f"response/edit/{name}").json for name in ("a", "b")]
    assert answers[0]["job_id"] == answers[1]["job_id"]
    house.sender.edit(PNG, job_id="one", reply_to="late")
    assert house.sender.next("response/edit/late").json["job_id"] == answers[0]["job_id"]
    assert len(house.daemon.jobs()) == house.daemon.count("executed") == 1


def test_a_constant_transaction_is_a_new_job_each_time(house: House) -> None:
    """Also byte for byte the same request, and also at a broker that counts anew."""
    for _ in range(3):
        house.sender.edit(PNG, transaction="same")
        assert house.answer()["transaction"] == "same"
    house.confirmed()
    house.daemon.kill()
    house.broker.kill()
    for file in house.broker.folder.glob("*.db*"):
        file.unlink()
    house.broker.start()
    house.daemon.start()
    house.online()
    house.sender.edit(PNG, transaction="same")
    house.answer()
    assert len(house.daemon.jobs()) == 4


def test_a_packet_id_that_was_used_before(make_house: Callable[..., House], broker: Broker) -> None:
    """A killed broker forgets which ids it gave: the same words again are another request.

    Also where its first copy is lost on the way, so that only a redelivery arrives.
    """
    proxy = Proxy(broker.port)
    copies: list[tuple[int, bool]] = []  # packet id, and whether it is a redelivery
    lost: list[int] = []  # which of them do not arrive

    def passes(packet: Packet) -> bool:
        if packet.kind != PUBLISH or not packet.topic.endswith("request/edit"):
            return True
        copies.append((packet.mid, bool(packet.data[0] & 8)))
        return len(copies) not in lost

    house = make_house(port=proxy.port)
    proxy.down = passes
    log = house.daemon.folder / "log"
    before = (broker.folder / "mosquitto.db").read_bytes()
    house.sender.edit(PNG, transaction="same")
    first = house.answer()["job_id"]
    house.confirmed()
    broker.kill()
    (broker.folder / "mosquitto.db").write_bytes(before)  # as if it had written nothing since
    broker.start()
    wait(lambda: log.read_text().count("connected to broker") == 2, "the daemon to be back")
    lost.append(2)
    house.sender.edit(PNG, transaction="same")
    wait(lambda: len(copies) == 2, "it to be sent")
    house.daemon.kill()
    house.daemon.start()
    assert house.answer()["job_id"] != first
    assert copies == [(1, False), (1, False), (1, True)]
    assert len(house.daemon.jobs()) == house.daemon.count("executed") == 2
    proxy.close()


async def test_other_words_are_another_message(broker: Broker) -> None:
    """Packet ids come round: one picture with two prompts is never taken for a redelivery."""
    got: asyncio.Queue[Message] = asyncio.Queue()
    connection = Connection(
        MqttSettings(port=broker.port),  # type: ignore[call-arg]
        "words",
        None,
        lambda _, message: got.put_nowait(message),
        keep_session=False,
    )
    await connection.open()
    await connection.subscribe("x")
    digests = []
    for prompt in ("snow", "rain", "snow"):
        await connection.publish(Outgoing("x", PNG, properties=(("prompt", prompt),)))
        digests.append((await asyncio.wait_for(got.get(), 5)).digest)
    await connection.close(1)
    assert digests[0] == digests[2] != digests[1]


async def test_a_stop_while_it_connects_leaves_nothing_open(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The thread that connects cannot be stopped: what it opens is closed."""

    def read(server: socket.socket) -> None:
        near, _ = server.accept()
        with near:
            near.settimeout(10)
            while near.recv(4096):
                pass

    go = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as server:
        settings = MqttSettings(port=server.getsockname()[1])  # type: ignore[call-arg]
        connection = Connection(settings, "late", None, lambda *_: None)
        connect = connection._connect
        monkeypatch.setattr(connection, "_connect", lambda: go.wait() and connect())
        async with asyncio.TaskGroup() as tasks:
            opening = tasks.create_task(connection.open())
            await asyncio.sleep(0)
            opening.cancel()
        go.set()
        await asyncio.to_thread(read, server)


@pytest.mark.parametrize("protocol", ["5", "311"])
def test_a_retained_request_is_refused(make_house: Callable[..., House], protocol: str) -> None:
    """It would run at every connection. Only MQTT 5 shows it the first time."""
    house = make_house(protocol=protocol)
    if protocol == "311":
        house.daemon.kill()
        house.broker.restart()
    house.sender.publish("request/edit", {"image": b64(PNG), "prompt": "p"}, retain=True)
    jobs = 0
    if protocol == "311":
        house.daemon.start()
        jobs = 1  # queued for the session, where it looks like any other
    found = house.sender.until(
        lambda got: got.topic.endswith("/response/edit") and got.json["status"] == "error"
    ).json
    assert found["error"]["code"] == "bad_request" and "retained" in found["error"]["message"]
    assert len(house.daemon.jobs()) == jobs


class TestSmallBroker:
    """A broker that takes 2,000,000 bytes."""

    @pytest.fixture
    def broker(self, tmp_path: Path) -> Iterator[Broker]:
        made = Broker(tmp_path, "max_packet_size 2000000")
        yield made
        made.close()

    def test_results_are_made_to_fit(self, house: House) -> None:
        """Larger than the broker takes, a result comes re-encoded, and says so."""
        picture = noise(1_900_000)
        assert 1_850_000 < len(picture) < 1_990_000
        for reply in ("json", "binary"):
            house.sender.publish(
                "request/edit",
                picture,
                UserProperty=[("prompt", "invert"), ("reply", reply), ("job_id", reply)],
            )
            answer = house.answer(reply)
            assert answer["status"] == "ok"
        small = house.answer("json")
        assert "reencoded" in [warning["code"] for warning in small["data"]["warnings"]]
        assert small["data"]["image_type"] == "image/jpeg"
        assert opened(small["data"]["image"]).size == opened(picture).size
        binary = house.answer("binary")
        got = house.sender.next(f"result/{binary['job_id']}")
        assert got.type == "image/png" and opened(got.payload).size == opened(picture).size

    def test_three_megabytes_both_ways(self, house: House) -> None:
        """A request of 3 MB never arrives; a result of 3 MB comes smaller."""
        info = house.sender.next("info").json
        assert 1_900_000 < info["max_payload"] < 2_000_000
        bold = Sender(house.broker.port)
        bold.publish("request/edit", noise(3_000_000), wait=False)
        bold.close()
        house.sender.publish("request/edit", noise(1_900_000), UserProperty=[("prompt", "x")])
        assert house.answer()["status"] == "ok"
        assert len(house.daemon.jobs()) == 1


@pytest.mark.parametrize("reply", ["json", "binary"])
def test_a_result_that_cannot_fit_is_a_link(make_house: Callable[..., House], reply: str) -> None:
    """Where HTTP serves results at a public address, the answer says where, in full quality."""
    port = free_port()
    http = {"plugins.http": {"enabled": True, "port": port}}
    public = {"daemon": {"public_url": f"http://127.0.0.1:{port}/"}}
    house = make_house({**http, **public}, max_payload=10_000)
    asked = [("prompt", "invert"), ("job_id", "x"), ("reply", reply)]
    house.sender.publish("request/edit", noise(500_000), UserProperty=asked,
                         ResponseTopic="vellumd/x/me")  # fmt: skip
    answer = house.answer("x")
    data = answer["data"]
    assert answer["status"] == "ok" and "image" not in data and "result_topic" not in data
    assert data["url"] == data["results"][0]["url"]
    with urllib.request.urlopen(data["url"], timeout=10) as got:
        assert opened(got.read()).size == opened(noise(500_000)).size
    assert house.sender.until(lambda got: got.topic == "vellumd/x/me").json == answer
    house.sender.edit(PNG, job_id="small")
    assert "image" in (small := house.answer("small")["data"]) and small["url"]


def test_a_result_that_cannot_fit(make_house: Callable[..., House]) -> None:
    """Beside a prompt longer than a message may be, the answer is an error; the job says why."""
    house = make_house(max_payload=10_000)
    house.sender.edit(PNG, prompt="é" * 6000, job_id="x", transaction="t")
    answer = house.answer("x")
    assert answer["error"]["code"] == "result_too_large" and answer["data"] is None
    assert answer["transaction"] == "t" and answer["job_id"]
    wait(lambda: house.rows("SELECT code FROM deliveries") == [("result_too_large",)], "the code")


def test_poison_does_not_block_the_window(house: House) -> None:
    """More garbage than a broker hands over unacknowledged, and then an edit."""
    for n in range(60):
        house.sender.publish("request/edit", [b"\xff\xfe", b"{", b"", b"{}"][n % 4], wait=False)
    house.sender.edit(PNG, job_id="good")
    assert house.answer("good")["status"] == "ok"
    assert len(house.daemon.jobs()) == 1
    errors = [g for g in house.sender.got if g.topic.endswith("/response/edit")]
    assert sum(got.json["status"] == "error" for got in errors) == 60


def test_a_message_larger_than_any(house: House) -> None:
    """A packet that claims 300 MB ends at the broker, one of 130 MB stays there."""
    process = psutil.Process(house.daemon.pid)
    before = process.memory_info().rss
    with socket.create_connection(("127.0.0.1", house.broker.port)) as bold:
        bold.sendall(bytes.fromhex("101000044d5154540402003c000468756765"))
        assert bold.recv(4)[:1] == b"\x20"
        bold.sendall(b"\x32\xff\xff\xff\xff\x7f" + bytes(100_000))
    house.sender.publish("request/edit", bytes(130 << 20), wait=False)
    house.sender.edit(PNG, job_id="good")
    assert house.answer("good")["status"] == "ok"
    assert process.memory_info().rss - before < 256 << 20


@pytest.mark.parametrize("protocol", ["5", "311"])
def test_the_client_id_is_taken_over(make_house: Callable[..., House], protocol: str) -> None:
    """Another client of our name: told and counted, and no fight over it."""
    port = free_port()
    house = make_house({"plugins.http": {"enabled": True, "port": port}}, protocol=protocol)
    figure = r'vellumd_transport_events_total\{event="taken_over",transport="mqtt"\} (.*)'

    def counted() -> float:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as got:
            return float(re.findall(figure, got.read().decode())[0])

    assert counted() == 0
    thief = paho.Client(CallbackAPIVersion.VERSION2, "vellumd-main", protocol=paho.MQTTv5)
    thief.reconnect_delay_set(1, 1)
    thief.connect("127.0.0.1", house.broker.port)
    thief.loop_start()
    log = house.daemon.folder / "log"
    wait(lambda: "another client connects as 'vellumd-main'" in log.read_text(), "the report")
    wait(thief.is_connected, "the thief to be back")
    connected = log.read_text().count("connected to broker")
    time.sleep(2)
    assert log.read_text().count("connected to broker") == connected, "a fight"
    assert counted() >= 1
    thief.disconnect()
    thief.loop_stop()


def test_a_slow_broker_that_cuts(make_house: Callable[..., House], broker: Broker) -> None:
    """Behind a line with delays that is cut again and again every edit is answered, once run."""
    dice = random.Random(seed())
    proxy = Proxy(broker.port)
    proxy.delay_s = 0.02
    house = make_house(port=proxy.port)
    for n in range(12):
        house.sender.edit(noise(150_000, n), job_id=str(n))
        if n % 4 == 1:
            time.sleep(dice.uniform(0, 0.3))
            proxy.cut()
    for n in range(12):
        assert house.answer(str(n))["status"] == "ok"
    assert len(house.daemon.jobs()) == house.daemon.count("executed") == 12
    proxy.close()


def test_a_full_queue_holds_requests(
    make_house: Callable[..., House], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What finds no room waits unacknowledged, commands pass it, and all is done in the end."""
    monkeypatch.setenv("VELLUMD_LIMITS__QUEUE", "2")
    house = make_house()
    house.daemon.hold()
    for n in range(10):
        house.sender.edit(PNG, job_id=str(n))
    wait(lambda: "requests are held" in (house.daemon.folder / "log").read_text(), "the report")
    assert len(house.daemon.jobs()) <= 4
    first = house.sender.ask("status", "1")
    assert first["data"]["status"] in ("queued", "running")
    assert house.sender.ask("cancel", "1")["status"] == "ok"
    house.daemon.release()
    wait(lambda: "requests are taken again" in (house.daemon.folder / "log").read_text(), "room")
    statuses = {n: house.answer(str(n))["status"] for n in range(10)}
    assert statuses == {n: "error" if n == 1 else "ok" for n in range(10)}
    assert len(house.daemon.jobs()) == 10


def test_held_requests_survive_a_kill(
    make_house: Callable[..., House], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The broker still has what the daemon could not take, though nothing else happened to it."""
    monkeypatch.setenv("VELLUMD_LIMITS__QUEUE", "2")
    house = make_house()
    house.daemon.hold()
    for n in range(3):
        house.sender.edit(PNG, transaction=n)
    house.told(running=1, queued=2)
    for n in range(3, 8):
        house.sender.edit(PNG, transaction=n)
    for n in range(3, 8):
        wait(lambda n=n: house.broker.has_written(b'"transaction": %d' % n), f"{n} to be written")
    house.broker.kill()
    house.daemon.kill()
    house.broker.start()
    house.daemon.start()
    house.daemon.release()
    done: set[int] = set()
    while len(done) < 8:
        done.add(house.answer()["transaction"])
    assert len(house.daemon.jobs()) == 8


def test_an_answer_survives_a_kill_of_the_broker(
    make_house: Callable[..., House], broker: Broker
) -> None:
    """Also if its reader is connected but hears nothing: the broker has it on its disk."""
    proxy = Proxy(broker.port)
    house = make_house(sender=Sender(proxy.port))
    house.daemon.hold()
    house.sender.edit(PNG, job_id="one")
    house.told(running=1)
    time.sleep(PACE_S)  # by then the daemon tells at once that the job has ended, not with it
    proxy.down = lambda packet: False
    house.daemon.release()
    house.confirmed()
    wait(lambda: broker.has_written(b'"status":"ok"'), "the answer to be written")
    broker.kill()
    proxy.down = lambda packet: True
    broker.start()
    assert house.answer("one")["status"] == "ok"
    proxy.close()


def test_broker_restarts_under_load(house: House, full: bool) -> None:
    """Killed and restarted over and over: every job terminal, delivered, and run once.

    Mosquitto acknowledges a message a moment before it is on its disk, so the sender sends
    again what is not answered, under the same `job_id`.
    """
    jobs, restarts = (1_000, 50) if full else (100, 5)
    dice = random.Random(seed())
    breaks = sorted(dice.sample(range(jobs), restarts))
    left = set(range(jobs))
    seen = again = 0

    def send(number: int) -> None:
        request = {"image": b64(PNG), "prompt": str(number), "job_id": f"{number}"}
        house.sender.publish("request/edit", request, wait=False)

    def look() -> bool:
        """Take note of the answers that came; whether there were any."""
        nonlocal seen
        new = house.sender.got[seen:]
        seen += len(new)
        answers = [got.json for got in new if got.topic.endswith("/response/edit")]
        assert all(answer["status"] == "ok" for answer in answers)
        left.difference_update(int(answer["client_job_id"]) for answer in answers)
        return bool(answers)

    thread = threading.Thread(target=lambda: [(send(n), time.sleep(0.005)) for n in range(jobs)])
    thread.start()
    for after in breaks:
        wait(lambda n=after: house.daemon.count("queued") >= n * 0.7, "jobs to come", 60)
        house.broker.kill()
        time.sleep(dice.uniform(0, 0.5))
        house.broker.start()
    thread.join()
    quiet_since = time.monotonic()
    while left:
        if look():
            quiet_since = time.monotonic()
        assert time.monotonic() - quiet_since < 30, f"{len(left)} are not answered"
        if time.monotonic() - quiet_since > 6 and not again:
            again = len(left)
            for number in sorted(left):
                send(number)
        time.sleep(0.05)
    assert len(house.daemon.jobs()) == house.daemon.count("executed") == jobs
    assert house.daemon.count("done") == jobs
    house.confirmed()
    assert house.daemon.stop(15) == 0
    assert house.daemon.owed() == 0
    record(full, {"jobs": jobs, "restarts": restarts, "sent_again": again, "run_twice": 0})


def record(full: bool, facts: dict[str, int]) -> None:
    """Keep the figures of a full run."""
    if full:
        text = json.dumps(facts, indent=2) + "\n"
        (ROOT / "tests/trust/results/mqtt-restarts.json").write_text(text)
