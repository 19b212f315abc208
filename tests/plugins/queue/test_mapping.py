"""Answers of old servers, however they spell things, become equal requests."""

from __future__ import annotations

import base64
import email
import json
from typing import Any

import pytest

from tests.plugins.queue.conftest import b64, png
from vellumd import errors
from vellumd_queue import mapping
from vellumd_queue.mapping import GarbageError
from vellumd_queue.plugin import MapSettings

USUAL = MapSettings()
URL = "http://queue.lan:8000/base"


@pytest.mark.parametrize(
    "body", [b"", b" \n", b"null", b"{}", b"[]", b'{"id": null}', b'{"job_id":""}']
)
def test_empty_answers(body: bytes) -> None:
    """There are many ways to say: nothing to do."""
    assert mapping.find_job(body, USUAL) is None


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"<html>", "web page"),
        (b"\xff\xfe", "not JSON"),
        (b"{", "not JSON"),
        (b'{"id": NaN}', "not JSON"),
        (b"[" * 50_000, "not JSON"),
        (b"[" * 200_000, "elements"),
        (b"7", "int"),
        (b'[{"id": 1}]', "list"),
        (b'{"message": "no"}', "without an id; it has 'message'"),
        (b'{"id": {"a": 1}}', "neither a short text"),
        (b'{"id": true}', "neither a short text"),
        (b'{"id": 1.5}', "neither a short text"),
        (json.dumps({"id": "x" * 300}).encode(), "neither a short text"),
    ],
)
def test_garbage_is_named(body: bytes, said: str) -> None:
    """What is no answer of a queue is told from an empty queue, and said to be what it is."""
    with pytest.raises(GarbageError, match=said):
        found = mapping.find_job(body, USUAL)
        mapping.read_id(found or {}, USUAL)


SPELLED = [
    (USUAL, {"id": 7, "image": "QUJD", "prompt": "p", "num_steps": 9, "cfg": 2}),
    (USUAL, {"job_id": 7, "images": ["QUJD"], "prompt": "p", "steps": 9, "true_cfg_scale": 2}),
    (
        MapSettings(
            job="data.jobs.0",
            fields={"id": "uuid", "images": "in.pics", "prompt": "text", "steps": "n", "cfg": "g"},
        ),
        {"data": {"jobs": [{"uuid": 7, "in": {"pics": ["QUJD"]}, "text": "p", "n": 9, "g": 2}]}},
    ),
]


@pytest.mark.parametrize(("names", "answer"), SPELLED)
def test_spellings_mean_the_same(names: MapSettings, answer: dict[str, Any]) -> None:
    """Three servers, one order."""
    job = mapping.find_job(json.dumps(answer).encode(), names)
    assert job is not None
    order = mapping.read_order(job, names)
    assert (order.id, order.pictures) == (7, ["QUJD"])
    assert order.fields == {"prompt": "p", "steps": 9, "true_cfg_scale": 2}


def test_what_is_private_or_unknown_is_not_taken_over() -> None:
    """Fields that the door sets itself and fields that nobody knows are left out."""
    job = {"id": 1, "image": "QUJD", "meta": 1, "client_id": "x", "lease": 3, "seed": None}
    order = mapping.read_order(job, USUAL)
    assert order.fields == {}
    assert order.ignored == ["lease"]


@pytest.mark.parametrize("pictures", [7, [7], {"a": 1}, [["QUJD"]]])
def test_pictures_are_texts(pictures: Any) -> None:
    """Anything else is a bad request."""
    with pytest.raises(errors.BadRequest, match="images"):
        mapping.read_order({"id": 1, "images": pictures}, USUAL)


def test_many_steps_mean_the_model_without_lightning() -> None:
    """As on the predecessor's other door; a size comes from width and height."""
    order = mapping.read_order({"id": 1, "num_steps": 28, "width": 64, "height": 32}, USUAL)
    fields = mapping.request_of(order, [], None)
    assert (fields["preset"], fields["size"]) == ("original", "64x32")
    with pytest.raises(errors.BadRequest, match="together"):
        mapping.request_of(mapping.read_order({"id": 1, "width": 64}, USUAL), [], None)


@pytest.mark.parametrize(
    ("picture", "url"),
    [
        ("/files/1.png", "http://queue.lan:8000/files/1.png"),
        ("http://queue.lan:8000/x?y=1", "http://queue.lan:8000/x?y=1"),
        ("HTTP://queue.lan:8000/x", "http://queue.lan:8000/x"),
        (base64.b64encode(b"\xff\xd8\xff\xe0").decode(), None),
        (b64(png()), None),
        ("data:image/png;base64,QUJD", None),
    ],
)
def test_urls_of_the_same_server(picture: str, url: str | None) -> None:
    """Whole and relative ones; base64 of a JPEG begins with a slash and is none."""
    assert mapping.picture_url(picture, URL) == url


@pytest.mark.parametrize(
    "picture",
    [
        "http://queue.lan/x",
        "https://queue.lan:8000/x",
        "http://queue.lan:8000@evil/x",
        "http://me:secret@queue.lan:8000/x",
        "http://evil\\@queue.lan:8000/x",
        "//evil/x",
        "http://169.254.169.254/x",
        "http://queue.lan:99999/x",
    ],
)
def test_urls_of_other_servers(picture: str) -> None:
    """A job cannot make this machine ask any other one."""
    with pytest.raises(errors.BadRequest):
        mapping.picture_url(picture, URL)


def test_port_0_is_not_the_usual_port() -> None:
    """Nobody listens there: the server would count as down, and its other jobs would wait."""
    with pytest.raises(errors.BadRequest):
        mapping.picture_url("http://queue.lan:0/x", "http://queue.lan")


def test_pictures_are_decoded() -> None:
    """Base64 with and without padding, with line ends, as data: URI."""
    for text in ("QUJDRA==", "QUJDRA", "QUJD\nRA==", "data:image/png;base64,QUJDRA=="):
        assert mapping.decode_picture(text) == b"ABCD"
    for text in ("Bild: ü", "ftp://x/y", "data:image/png,x"):
        with pytest.raises(errors.BadRequest):
            mapping.decode_picture(text)


def test_answers_are_spelled_as_the_server_wants() -> None:
    """Names, words, places; an empty name leaves a field out."""
    names = MapSettings(
        answer={"id": "task", "image": "out.png", "done": "ok", "elapsed": "", "status": "state"}
    )
    body, type = mapping.as_json(names, mapping.done(names, "7", [b"ABC"], 3, 1.5))
    assert type == "application/json"
    assert json.loads(body) == {"task": "7", "state": "ok", "out": {"png": "QUJD"}, "seed": 3}


def test_forms_hold_files_and_are_the_same_each_time() -> None:
    """A form that Python's own parser reads; equal results are equal bytes."""
    fields = mapping.done(USUAL, "7", [b"A\r\n--B", b"C"], 3, 1.5)
    body, type = mapping.as_form(USUAL, fields, "image/png")
    assert (body, type) == mapping.as_form(USUAL, fields, "image/png")
    message = email.message_from_bytes(f"Content-Type: {type}\r\n\r\n".encode() + body)
    parts = [(p.get_param("name", header="content-disposition"), p) for p in message.get_payload()]
    assert [name for name, _ in parts] == [
        "id", "status", "image", "images", "images", "seed", "elapsed",
    ]  # fmt: skip
    assert parts[2][1].get_payload(decode=True) == b"A\r\n--B"
    assert parts[2][1].get_filename() == "result.png"
