"""Translation: fields in, answers out, without a socket."""

from __future__ import annotations

import base64
import json
from datetime import UTC, datetime
from typing import Any

import pytest

from vellumd import EditRequest, ImageRef, Job, JobStatus, errors, models
from vellumd_http import wire

PICTURE = ImageRef(sha256="a" * 64, width=32, height=24)


def legacy(fields: dict[str, Any], size: Any = "match") -> tuple[EditRequest, list[models.Notice]]:
    return wire.legacy_request({"images": [PICTURE], "prompt": "x", **fields}, size)


@pytest.mark.parametrize(
    "spelling", [{"steps": 8}, {"num_steps": "8"}, {"num_inference_steps": 8.0}]
)
def test_steps_have_three_spellings(spelling: dict[str, Any]) -> None:
    """Every spelling, as number or text, makes the equal request."""
    assert legacy(spelling)[0].digest() == legacy({"steps": 8})[0].digest()


@pytest.mark.parametrize(
    ("fields", "preset"),
    [
        ({}, None),
        ({"num_steps": 19}, None),
        ({"num_steps": 20}, "original"),
        ({"num_steps": "28"}, "original"),
        ({"num_steps": 28, "preset": "fastest"}, "fastest"),
    ],
)
def test_twenty_steps_select_the_full_schedule(fields: dict[str, Any], preset: str | None) -> None:
    """Only without a preset, and only from 20 steps on, `original` is chosen."""
    assert legacy(fields)[0].preset == preset


@pytest.mark.parametrize(
    ("fields", "setting", "size"),
    [
        ({}, "match", "match"),
        ({}, "auto", "auto"),
        ({"width": 640, "height": "480"}, "auto", "640x480"),
        ({"size": "fit:1", "width": 640, "height": 480}, "match", "fit:1"),
        ({"width": None, "height": None}, "match", "match"),
    ],
)
def test_width_and_height_are_a_size(fields: dict[str, Any], setting: str, size: str) -> None:
    """Width and height make WxH; without them the setting decides; `size` wins."""
    assert legacy(fields, setting)[0].size == size


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"width": 640}, "bad_request"),
        ({"width": "wide", "height": 480}, "bad_size"),
        ({"width": 1, "height": 1}, "bad_size"),
        ({"num_steps": 0}, "bad_request"),
        ({"true_cfg_scale": float("nan")}, "bad_request"),
        ({"prompt": 5}, "bad_request"),
    ],
)
def test_wrong_legacy_fields_have_a_code(fields: dict[str, Any], code: str) -> None:
    """A wrong field is refused by its code and named."""
    with pytest.raises(errors.VellumError) as caught:
        legacy(fields)
    assert caught.value.code == code


def test_unknown_legacy_fields_are_named_and_ignored() -> None:
    """They change nothing but bring one warning with their names."""
    request, warnings = legacy({"guidance": 3, "api_version": "2"})
    assert request.digest() == legacy({})[0].digest()
    assert [one.code for one in warnings] == ["unknown_field"]
    assert "api_version, guidance" in warnings[0].message


def test_unknown_native_field_is_an_error_that_names_it() -> None:
    """The native door takes no field it does not know."""
    with pytest.raises(errors.BadRequest, match="guidance"):
        EditRequest.parse({"images": [PICTURE], "prompt": "x", "guidance": 3})


def test_form_and_json_make_equal_requests() -> None:
    """Texts of a form mean what the values of JSON mean."""
    form = wire.form_fields(
        {
            "prompt": "x", "steps": "8", "seed": "7", "true_cfg_scale": "3.0", "n": "2", "size": "",
            "loras": '[{"name": "lightning-8"}]', "meta": '{"a": 1}',
            "output": '{"format": "jpeg"}',
        }
    )  # fmt: skip
    fields = {
        "prompt": "x", "steps": 8, "seed": 7, "true_cfg_scale": 3, "n": 2,
        "loras": [{"name": "lightning-8"}], "output": {"format": "jpeg"}, "meta": {"a": 1},
    }  # fmt: skip
    asked = [EditRequest.parse({"images": [PICTURE], **one}) for one in (form, fields)]
    assert asked[0].digest() == asked[1].digest()


def test_bad_json_in_a_form_field_names_the_field() -> None:
    """The sender learns which of the JSON fields is broken."""
    with pytest.raises(errors.BadRequest, match="loras"):
        wire.form_fields({"loras": "[{"})


@pytest.mark.parametrize(
    "body",
    [
        b"", b"{", b"[]", b"3", b'{"a": NaN}', b'{"a": -Infinity}', b"\xff\xfe\x00", b"[" * 100_000,
        b'{"a": ' + b"9" * 5000 + b"}", b'{"a": "\x01"}',
    ],
)  # fmt: skip
def test_what_is_no_json_object_is_refused(body: bytes) -> None:
    """Literals outside JSON, absurd numbers and depths end in `bad_request`."""
    with pytest.raises(errors.BadRequest):
        wire.parse_object(bytearray(body))


def test_json_that_multiplies_in_memory_is_refused() -> None:
    """Many tiny elements, and wide characters among very much text."""
    with pytest.raises(errors.BadRequest):
        wire.parse_object(bytearray(b'{"a": [' + b"[]," * 60_000 + b"1]}"))
    wide = bytearray('{"a": "\U0001f600'.encode() + b"x" * (30 << 20) + b'"}')
    with pytest.raises(errors.PayloadTooLarge):
        wire.parse_object(wide)


@pytest.mark.parametrize("value", [{"a": {"b": "x" * (1 << 20) + "x"}}, ["\ud800"], {"\ud800": 1}])
def test_text_that_no_field_needs_is_refused(value: Any) -> None:
    """Wherever it is nested."""
    with pytest.raises(errors.BadRequest):
        wire.check_text({"meta": value})


def test_deep_values_are_refused() -> None:
    """Before anything recurses into them."""
    deep: Any = []
    for _ in range(900):
        deep = [deep]
    with pytest.raises(errors.BadRequest):
        wire.check_text({"meta": deep})


def test_json_may_begin_with_a_byte_order_mark() -> None:
    """Windows programs write one."""
    assert wire.parse_object(bytearray(b'\xef\xbb\xbf{"a": 1}')) == {"a": 1}


def test_half_a_surrogate_pair_is_refused() -> None:
    """JSON can spell text that UTF-8 cannot carry; it must not reach the store."""
    with pytest.raises(errors.BadRequest):
        wire.check_text(wire.parse_object(bytearray(b'{"meta": {"a": ["\\ud800"]}}')))
    wire.check_text(wire.parse_object(bytearray(b'{"prompt": "\\ud83d\\ude00", "images": []}')))


@pytest.mark.parametrize(
    "text",
    [
        "aGVsbG8=", "aGVsbG8", "aGVs\r\nbG8=\n", "data:image/png;base64,aGVsbG8=",
        "data:;base64,aGVsbG8=", "DATA:image/png;charset=utf-8;BASE64,aGVsbG8=",
    ],
)  # fmt: skip
def test_base64_as_clients_write_it(text: str) -> None:
    """With or without padding, line breaks and a data URI's head."""
    assert wire.decode_picture(text, "images.0") == b"hello"


@pytest.mark.parametrize(
    "picture",
    [
        "photo.jpg", "http://192.0.2.1/a.png", "file:///etc/passwd", "data:image/svg+xml,<svg/>",
        "data:image/png;base64,@@", "a", "ä" * 8, 5, {"url": "x"}, ["aGVsbG8="], True,
    ],
)  # fmt: skip
def test_other_texts_are_no_picture(picture: Any) -> None:
    """URLs and paths are never opened; the error names the field, not the value."""
    with pytest.raises(errors.BadRequest, match=r"images\.0") as caught:
        wire.decode_picture(picture, "images.0")
    assert "passwd" not in str(caught.value)


def test_staged_pictures_are_named_by_hash() -> None:
    """Only the full form names a staged picture."""
    assert wire.staged_hash("sha256:" + "A" * 64) == "a" * 64
    assert wire.staged_hash("sha256:abc") is None
    assert wire.staged_hash(5) is None


def test_one_picture_stands_for_a_list() -> None:
    """`image` and `images`, single or list, are taken out of the fields."""
    for fields in (
        {"image": "a"},
        {"images": "a"},
        {"images": ["a"]},
        {"images": ["a"], "image": None},
    ):
        assert wire.take_pictures({**fields, "mask": "m"}) == (["a"], "m")
    with pytest.raises(errors.BadRequest):
        wire.take_pictures({"image": "a", "images": ["b"]})


@pytest.mark.parametrize(
    ("name", "clean"),
    [
        ("../../etc/passwd", "passwd"), ("C:\\me\\photo.jpg", "photo.jpg"), (None, ""),
        ("a\x00\nb.png", "ab.png"), ("x" * 300, "x" * 255), ("写真.png", "写真.png"),
    ],
)  # fmt: skip
def test_a_senders_file_name_is_only_a_label(name: str | None, clean: str) -> None:
    """Folders and control characters go."""
    assert wire.clean_name(name) == clean


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ([], None), (["wait=10"], 10), (["respond-async, wait=5"], 5), (["wait=9999"], 300),
        (["wait=0"], 0), (["wait=-1"], None), (["wait=soon"], None), (["x", "wait = 7;y=1"], 7),
        (['wait="3"'], 3),
    ],
)  # fmt: skip
def test_prefer_wait(headers: list[str], seconds: int | None) -> None:
    """Malformed preferences are ignored, as RFC 7240 says; long ones are cut."""
    assert wire.prefer_wait(headers) == seconds


@pytest.mark.parametrize(
    ("accept", "picture"),
    [
        ("", False), ("*/*", False), ("image/png", True), ("image/*;q=0.9, */*", True),
        ("application/json, image/png", False), ("IMAGE/WEBP", True),
    ],
)  # fmt: skip
def test_who_gets_bytes(accept: str, picture: bool) -> None:
    """Bytes only go to those who list an image type and not JSON."""
    assert wire.wants_picture(accept) is picture


def job(results: int) -> Job:
    made = tuple(
        models.Result(
            n=n, type="image/png", bytes=3, sha256="b" * 64, width=30, height=20, seed=40 + n
        )
        for n in range(1, results + 1)
    )
    return Job(
        id="1", status=JobStatus.DONE, model="demo", source="http", created=datetime.now(UTC),
        results=made, elapsed_s=1.5, warnings=(models.notice("demo_model"),),
    )  # fmt: skip


def test_the_legacy_answer_has_the_first_picture_and_all() -> None:
    """`images` stands only where there are several."""
    one = wire.legacy_answer(job(1), [b"abc"], [])
    assert one.keys() == {
        "image", "seed", "width", "height", "elapsed", "job_id", "model", "warnings",
    }  # fmt: skip
    assert base64.b64decode(one["image"]) == b"abc"
    assert (one["seed"], one["width"], one["height"], one["elapsed"]) == (41, 30, 20, 1.5)
    ignored = models.notice("unknown_field")
    two = wire.legacy_answer(job(2), [b"abc", b"def"], [ignored])
    assert [base64.b64decode(text) for text in two["images"]] == [b"abc", b"def"]
    assert [one["code"] for one in two["warnings"]] == ["demo_model", "unknown_field"]


@pytest.mark.parametrize("kind", errors.ALL, ids=lambda kind: kind.code)
def test_every_error_is_a_problem(kind: type[errors.VellumError]) -> None:
    """RFC 9457 members plus code and retryable; a wait where retrying helps."""
    error = kind("It broke.")
    shown = json.loads(json.dumps(wire.problem(error)))
    assert shown["status"] == kind.status
    assert shown["code"] == kind.code
    assert shown["type"] == f"urn:vellumd:error:{kind.code}"
    assert shown["detail"].startswith("It broke.")
    assert ("Retry-After" in wire.error_headers(error)) is kind.retryable
    assert wire.legacy_error(error) == {"detail": shown["detail"], "code": kind.code}


def test_a_known_wait_is_told_in_whole_seconds() -> None:
    """Retry-After is rounded up and never 0."""
    assert wire.error_headers(errors.QueueFull("x", retry_after=0.2))["Retry-After"] == "1"
    assert wire.error_headers(errors.QueueFull("x", retry_after=2.1))["Retry-After"] == "3"
    assert wire.error_headers(errors.Unauthorized("x")) == {"WWW-Authenticate": "Bearer"}


def test_switches() -> None:
    """JSON's booleans, and the spellings of people; anything else is no answer."""
    for yes in (True, 1, "true", "TRUE", "1", "yes", "on", "y", "t"):
        assert wire.flag({"stream": yes}, "stream") is True
    for no in (False, 0, "false", "False", "0", "no", "off", "n", "f", "", None):
        assert wire.flag({"stream": no}, "stream") is False
    assert wire.flag({}, "stream") is False
    for neither in ("maybe", "2", 2, " ", [], {}, "true false"):
        with pytest.raises(errors.BadRequest, match="stream: must be true or false"):
            wire.flag({"stream": neither}, "stream")
