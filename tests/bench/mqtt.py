"""What the MQTT door costs, beside the engine: `python -m tests.bench.mqtt`.

A real Mosquitto, a real daemon, the stand-in engine; all on this machine. Results go to
tests/bench/results/mqtt.json.
"""

from __future__ import annotations

import json
import os
import statistics
import tempfile
import time
from pathlib import Path

from tests.e2e.flows import files, flow, one, shows_edit
from tests.e2e.node_red import NodeRed
from tests.plugins.mqtt.broker import Broker
from tests.plugins.mqtt.house import House, noise, wait
from vellumd.models import now_ms

RESULTS = Path(__file__).parent / "results" / "mqtt.json"


def latency(house: House, count: int = 100) -> dict[str, float]:
    """Milliseconds from the sender's publish to the broker's ... to the word that it is taken."""
    picture, times = noise(1_000_000), []
    for n in range(count):
        name = f"latency {n}"
        began = time.perf_counter()
        properties = [("prompt", "x"), ("job_id", name)]
        house.sender.publish("request/edit", picture, wait=False, UserProperty=properties)
        house.sender.until(
            lambda got, name=name: "/progress/" in got.topic and name.encode() in got.payload
        )
        times.append((time.perf_counter() - began) * 1000)
        house.answer(name)
        house.sender.got.clear()
    times.sort()
    return {"p50_ms": round(statistics.median(times), 1), "p99_ms": round(times[-2], 1)}


def rate(house: House, count: int = 500, ahead: int = 0) -> float:
    """Requests of 100 KB a second that are on disk and acknowledged, engine held.

    The sender is at most `ahead` of what is accepted; 0 is no limit, so that all wait at the
    broker, which writes all that wait after each change.
    """
    picture = noise(100_000)
    house.daemon.hold()
    before = house.daemon.count("queued")
    began = time.perf_counter()
    for n in range(count):
        while ahead and n - (house.daemon.count("queued") - before) >= ahead:
            time.sleep(0.005)
        house.sender.publish(
            "request/edit", picture, wait=False, UserProperty=[("prompt", "x"), ("meta", str(n))]
        )
    while house.daemon.count("queued") - before < count:
        time.sleep(0.005)
    seconds = time.perf_counter() - began
    house.daemon.release()
    return round(count / seconds, 1)


def round_trip(house: House, count: int = 10) -> float:
    """Seconds for a PNG of 3 MB to the daemon and its result of 3 MB back, without the engine."""
    picture, times = noise(3_000_000), []
    for n in range(count):
        name = f"trip {n}"
        properties = [("prompt", "x"), ("job_id", name), ("reply", "binary")]
        began = time.perf_counter()
        house.sender.publish("request/edit", picture, UserProperty=properties)
        answer = house.answer(name)
        times.append(time.perf_counter() - began - answer["data"]["elapsed_s"])
    return round(statistics.median(times), 3)


def through_node_red(house: House, folder: Path, count: int = 10) -> float:
    """Seconds from the button to the edit's file, PNGs of 3 MB, without the engine's time."""
    picture, result, times = noise(3_000_000), folder / "out.png", []
    (folder / "in.png").write_bytes(picture)
    node_red = NodeRed(folder)
    try:
        nodes = flow("mqtt-5", house.broker.port, **files(folder))
        node_red.deploy(nodes)
        for n in range(count + 1):
            result.unlink(missing_ok=True)
            done = house.daemon.count("done")
            began = time.perf_counter()
            node_red.press(one(nodes, "inject"))
            while not shows_edit(result, picture):
                time.sleep(0.005)
            seconds = time.perf_counter() - began
            wait(lambda done=done: house.daemon.count("done") > done, "the end")
            engine = house.sender.next("response/edit").json["data"]["elapsed_s"]
            if n:  # the first one connects, too
                times.append(seconds - engine)
    finally:
        node_red.close()
    return round(statistics.median(times), 3)


def back(house: House, count: int = 5) -> float:
    """Worst seconds from a broker's return to the daemon's being online again."""
    worst = 0.0
    for _ in range(count):
        house.broker.kill()
        time.sleep(4)
        house.broker.start()
        began = time.monotonic()
        log = (house.daemon.folder / "log").read_text().count("connected to broker")
        while (house.daemon.folder / "log").read_text().count("connected to broker") == log:
            time.sleep(0.01)
        worst = max(worst, time.monotonic() - began)
    return round(worst, 2)


def main() -> None:
    """Measure all, print it and keep it."""
    with tempfile.TemporaryDirectory() as name:
        broker = Broker(Path(name), "max_packet_size 16777216\nlog_dest none")
        house = House(Path(name), broker, {})
        try:
            found = {
                "topic_to_accepted_1_mb": latency(house),
                "requests_of_100_kb_per_s": {},
                "round_trip_3_mb_s": round_trip(house),
                "round_trip_3_mb_through_node_red_s": through_node_red(house, Path(name)),
                "back_after_broker_s": back(house),
            }
            house.online()
            found["requests_of_100_kb_per_s"] = {
                "sender_4_ahead": rate(house, 500, 4),
                "all_at_once": rate(house),
            }
        finally:
            house.close()
            broker.close()
    found["load_1_min"] = round(os.getloadavg()[0], 1)
    found["at_ms"] = now_ms()
    RESULTS.write_text(json.dumps(found, indent=2) + "\n")
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
