"""What targets are told, and what bad ones cost: nobody else anything."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import sqlite3
import ssl
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import trustme

from tests.plugins.webhook.conftest import OpenDoor, submit, until
from tests.plugins.webhook.receiver import OK, SECRET, Answer, Call, Receiver
from vellumd import __version__
from vellumd.daemon import Daemon
from vellumd.errors import ConfigError
from vellumd.foreground import first
from vellumd_webhook.plugin import vellumd_transports
from vellumd_webhook.target import Pace


def door_of(daemon: Daemon) -> dict[str, object]:
    """How the door says it is."""
    shown: dict[str, object] = daemon.info()["transports"]["webhook"]
    return shown


def deliveries(folder: Path) -> list[tuple[str, str | None]]:
    """State and code of each delivery row."""
    with contextlib.closing(sqlite3.connect(folder / "data" / "jobs.sqlite")) as database:
        return database.execute("SELECT state, code FROM deliveries ORDER BY number").fetchall()


async def test_the_ends_of_jobs_are_told(
    open_door: OpenDoor, receiver: Receiver, tmp_path: Path
) -> None:
    """Done, failed and cancelled, each once, signed, in Standard Webhooks' shape."""
    async with open_door(shop=receiver.url + "/x?key=1") as daemon:
        done = await submit(daemon)
        failed = await submit(daemon, "black")
        await until(lambda: len(receiver.calls) == 2)
        await daemon.executor.pause()
        cancelled = await submit(daemon)
        await daemon.jobs.cancel(cancelled.id)
        await until(lambda: len(receiver.calls) == 3)
        job = await daemon.jobs.get(done.id)
        await until(lambda: deliveries(tmp_path) == [("delivered", None)] * 3)
    (call,) = receiver.of(done.id)
    assert call.path == "/hook/x?key=1"
    assert call.is_signed() and call.id == done.id
    assert call.headers["user-agent"] == f"vellumd/{__version__}"
    assert call.headers["content-type"] == "application/json"
    assert call.json["type"] == "job.done" and call.json["data"] == job.public()
    assert call.json["timestamp"] == job.public()["ended"]
    assert call.json["data"]["meta"] == {"order": 7}
    assert "url" not in call.json["data"]["results"][0]
    assert [c.json["type"] for c in receiver.of(failed.id)] == ["job.failed"]
    assert receiver.of(failed.id)[0].json["data"]["error"]["code"] == "bad_output"
    assert [c.json["type"] for c in receiver.of(cancelled.id)] == ["job.cancelled"]


async def test_a_target_hears_of_its_doors_only(open_door: OpenDoor, receiver: Receiver) -> None:
    """`sources` names them; without, a target hears of all."""
    some = {"url": f"{receiver.url}/some", "sources": ["mqtt"]}
    async with open_door(every=f"{receiver.url}/all", some=some) as daemon:
        by_http, by_mqtt = await submit(daemon), await submit(daemon, source="mqtt")
        await until(lambda: len(receiver.calls) == 3)
    assert [call.path for call in receiver.of(by_http.id)] == ["/hook/all"]
    assert {call.path for call in receiver.of(by_mqtt.id)} == {"/hook/all", "/hook/some"}


async def test_a_source_that_is_no_door_refuses_the_start(
    open_door: OpenDoor, receiver: Receiver
) -> None:
    """A misspelt one would be silence."""
    with pytest.raises(ExceptionGroup) as caught:
        async with open_door(shop={"url": receiver.url, "sources": ["htpp"]}):
            pass
    error = first(caught.value)
    assert isinstance(error, ConfigError)
    assert "there is no door 'htpp'; there is http, mqtt, webhook" in error.message


async def test_what_failed_is_sent_again_with_the_same_bytes(
    open_door: OpenDoor, receiver: Receiver
) -> None:
    """Whatever went wrong; only the time of the attempt is another, so the signature too."""
    bad: list[Answer] = [
        (500, {}, b"oh"),
        (404, {}, b""),
        (302, {"Location": "/elsewhere"}, b""),
        b"\xff\xfe\r\n\r\n",
        b"",
        b"HTTP/1.1 200 OK\r\nX-Large: " + b"x" * 100_000 + b"\r\n\r\n",
        (503, {"Content-Encoding": "gzip"}, b"no gzip"),
    ]
    receiver.answer = lambda call: bad.pop(0) if bad else OK
    async with open_door(shop=receiver.url) as daemon:
        job = await submit(daemon)
        await until(lambda: len(receiver.calls) == 8)
        await until(lambda: door_of(daemon)["ok"])
    assert all(call.is_signed() for call in receiver.calls)
    assert {(call.path, call.id, call.body) for call in receiver.calls} == {
        ("/hook", job.id, receiver.calls[0].body)
    }


async def test_an_endless_answer_is_not_read(open_door: OpenDoor, receiver: Receiver) -> None:
    """A good head is enough, and no more than a few KiB are taken of what follows."""
    head = b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\n"
    receiver.answer = lambda call: head + b"x" * 5_000_000
    async with open_door(shop=receiver.url) as daemon:
        await submit(daemon)
        await until(lambda: receiver.calls)
        await until(lambda: door_of(daemon)["text"] == "tells shop at 127.0.0.1")
        await submit(daemon)
        await until(lambda: len(receiver.calls) == 2)


async def test_retry_after_is_obeyed(open_door: OpenDoor, receiver: Receiver) -> None:
    """A target that says when is not asked before."""
    answers: list[Answer] = [(429, {"Retry-After": "1"}, b"")]
    receiver.answer = lambda call: answers.pop() if answers else OK
    async with open_door(shop=receiver.url) as daemon:
        await submit(daemon)
        await until(lambda: len(receiver.calls) == 2)
    one, two = receiver.calls
    assert two.at - one.at >= 1


def test_pauses_grow_at_random() -> None:
    """Up to 5 s at first, up to an hour at last, never nothing; a target's wish is the least."""
    pace = Pace()
    spread = {n: [pace.pause(n, None) for _ in range(400)] for n in (0, 3, 1000)}
    for attempts, most in ((0, 5), (3, 40), (1000, 3600)):
        assert all(1 <= pause <= most for pause in spread[attempts])
        assert max(spread[attempts]) > 0.8 * most and min(spread[attempts]) < max(1.01, 0.2 * most)
    assert pace.pause(0, 60) == 60 and pace.pause(0, 10**9) == 86_400
    assert vellumd_transports()[0].give_up_s == 86_400  # type: ignore[index]


async def test_a_target_that_is_gone_is_told_nothing_more(
    open_door: OpenDoor, receiver: Receiver, tmp_path: Path
) -> None:
    """410 ends it until the next start; what it is owed is given up, and others go on."""
    gone = Receiver(lambda call: (410, {}, b""))
    async with open_door(old=gone.url, shop=receiver.url) as daemon:
        jobs = [await submit(daemon) for _ in range(3)]
        await until(lambda: len(receiver.calls) == 3)
        await until(lambda: len(deliveries(tmp_path)) == 6)
        await until(lambda: not any(s == "pending" for s, _ in deliveries(tmp_path)))
        assert not door_of(daemon)["ok"] and "old at 127.0.0.1 is gone" in str(door_of(daemon))
        assert len(gone.calls) <= len(jobs)
    states = deliveries(tmp_path)
    assert states.count(("undeliverable", "gone")) == states.count(("delivered", None)) == 3
    before = len(gone.calls)
    async with open_door(old=gone.url) as daemon:
        await submit(daemon)
        await until(lambda: len(gone.calls) == before + 1)
    gone.close()


async def test_a_bad_target_delays_nobody(open_door: OpenDoor, receiver: Receiver) -> None:
    """One that is silent and one that is down: jobs run and the others are told at once."""
    release = threading.Event()

    def silence(call: Call) -> Answer:
        release.wait()
        return OK

    silent = Receiver(silence)
    down = Receiver()
    down.close()
    targets = {"silent": silent.url, "down": down.url, "shop": receiver.url}
    async with open_door(timeout_s=600, **targets) as daemon:  # more than `until` would wait
        for _ in range(8):
            await submit(daemon)
        await until(lambda: len(receiver.calls) == 8)
        assert daemon.jobs.queue() == {"queued": 0, "running": 0}
        await until(lambda: len(silent.calls) == 4)
        await until(lambda: not door_of(daemon)["ok"])
        assert "down at 127.0.0.1 cannot be reached" in str(door_of(daemon)["text"])
        release.set()
    silent.close()


async def test_what_was_not_told_is_told_after_a_restart(
    open_door: OpenDoor, receiver: Receiver
) -> None:
    """Also to a target that has moved; one that was taken out waits, and holds up nobody."""
    down = Receiver()
    down.close()
    async with open_door(shop=down.url, old=down.url) as daemon:
        job = await submit(daemon)
        await until(lambda: not door_of(daemon)["ok"])
    async with open_door(shop=receiver.url) as daemon:
        await until(lambda: receiver.calls)
        new = await submit(daemon)
        await until(lambda: receiver.of(new.id))
    assert len(receiver.of(job.id)) == 1


async def test_many_messages_wait_outside_of_memory(
    open_door: OpenDoor, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beyond what one target may hold in memory they are put off, and come all the same."""
    monkeypatch.setattr("vellumd_webhook.target.WAITING_MAX", 5)
    release = threading.Event()

    def silence(call: Call) -> Answer:
        release.wait(10)
        return OK

    receiver.answer = silence
    async with open_door(timeout_s=20, shop=receiver.url) as daemon:
        jobs = [await submit(daemon) for _ in range(12)]
        await until(lambda: daemon.jobs.queue() == {"queued": 0, "running": 0})
        release.set()
        await until(lambda: len(receiver.calls) == len(jobs))
    assert all(len(receiver.of(job.id)) == 1 for job in jobs)


async def test_secrets_stay_secret(
    open_door: OpenDoor, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    """Neither the signing key nor the URL's path is in a log, a report or the metrics."""
    caplog.set_level(logging.DEBUG)
    bad = Receiver(lambda call: (500, {}, b""))
    async with open_door(shop=bad.url + "/token-in-path?k=token-in-query") as daemon:
        await submit(daemon)
        await until(lambda: not door_of(daemon)["ok"])
        told = json.dumps(daemon.info()) + (await daemon.metrics.text(daemon.info())).decode()
    bad.close()
    for text in (told, caplog.text):
        assert "token-in" not in text
        assert SECRET not in text and SECRET.removeprefix("whsec_") not in text
    assert "shop at 127.0.0.1 answers 500" in caplog.text


async def test_https_is_checked(open_door: OpenDoor, tmp_path: Path) -> None:
    """A certificate has to be signed by one that is trusted, which `ca` may name."""
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    receiver = Receiver(tls=context)
    async with open_door(
        known={"url": f"{receiver.url}/known", "ca": str(tmp_path / "ca.pem")},
        stranger=f"{receiver.url}/stranger",
    ) as daemon:
        await submit(daemon)
        await until(lambda: receiver.calls and not door_of(daemon)["ok"])
        assert "stranger at 127.0.0.1 has no certificate" in str(door_of(daemon)["text"])
    assert {call.path for call in receiver.calls} == {"/hook/known"}
    receiver.close()


async def test_it_goes_on_with_a_store_that_stalls(
    open_door: OpenDoor, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What cannot be noted down is sent once more, and the door does not crash."""
    monkeypatch.setattr("vellumd_webhook.target.STORE_S", 0.05)
    async with open_door(shop=receiver.url) as daemon:
        store = daemon.jobs._store
        settle: Callable[..., object] = store.settle_delivery
        left = [1, 2]

        async def locked(*args: object) -> None:
            if left:
                left.pop()
                from vellumd import errors

                raise errors.StorageFull("no")
            await settle(*args)  # type: ignore[misc]

        monkeypatch.setattr(store, "settle_delivery", locked)
        await submit(daemon)
        await until(lambda: len(receiver.calls) == 3)
        await asyncio.sleep(0.1)
        assert door_of(daemon)["crashes"] == 0 and len(receiver.calls) == 3
