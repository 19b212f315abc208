"""Translation between a queue server's JSON and vellumd's terms: pure functions."""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn
from urllib.parse import quote, urljoin, urlsplit

from vellumd import ImageRef, errors, models
from vellumd_queue.names import ANSWER, SPELLINGS

if TYPE_CHECKING:
    from vellumd_queue.plugin import MapSettings

Id = str | int
"""A job's id as its server writes it; answers carry it back unchanged."""

ID_MAX = 256
"""Longest id in characters."""
ELEMENTS_MAX = 100_000
"""Most brackets and commas of an answer: pictures are few long texts."""
STEPS_DIGITS = 9
"""Digits of a number of steps that is looked at; thousands of them are more than `int` takes."""
PRIVATE = {"images", "mask", "client_id", "meta"}
"""Fields of a request that are not taken over as they come."""


class GarbageError(Exception):
    """The answer is no queue's; the text says what it is instead."""


@dataclass(frozen=True)
class Order:
    """A job as its server means it, its pictures still as they came."""

    id: Id
    pictures: list[str]
    mask: str | None
    fields: dict[str, Any]
    ignored: list[str]


# in: answers to orders


def find_job(body: bytes, mapping: MapSettings) -> dict[str, Any] | None:
    """The job in an answer, or None if the queue is empty; raises `GarbageError`.

    Empty are: no body, null, {}, [], and a job whose id is null.
    """
    if not body.strip():
        return None
    job = dig(parse(body), mapping.job)
    if job is None or job in ({}, []):
        return None
    if not isinstance(job, dict):
        raise GarbageError(f"answers with a JSON {type(job).__name__} where a job should be")
    named = [path for path in _id_paths(mapping) if holds(job, path)]
    if not named:
        names = ", ".join(map(ascii, sorted(job)[:8]))
        raise GarbageError(f"answers with an object without an id; it has {names[:200]}")
    return None if dig(job, named[0]) in (None, "") else job


def read_id(job: Mapping[str, Any], mapping: MapSettings) -> Id:
    """The job's id; raises `GarbageError` for one that cannot be sent back."""
    found = next((dig(job, path) for path in _id_paths(mapping) if holds(job, path)), None)
    if isinstance(found, bool) or not isinstance(found, Id) or not _is_short_text(str(found)):
        raise GarbageError("answers with an id that is neither a short text nor a whole number")
    return found


def read_order(job: Mapping[str, Any], mapping: MapSettings) -> Order:
    """The job in our terms; raises `GarbageError`, and `BadRequest` for wrong pictures."""
    fields: dict[str, Any] = {}
    ignored = []
    mapped = {path.partition(".")[0] for path in mapping.fields.values()}
    for name, value in job.items():
        if name in mapped or name in ("id", "job_id"):
            continue
        if name in SPELLINGS:
            fields.setdefault(SPELLINGS[name], value)
        else:
            ignored.append(name)
    for name, path in mapping.fields.items():
        fields[SPELLINGS.get(name, name)] = dig(job, path)
    fields = {name: value for name, value in fields.items() if value is not None}
    pictures, mask = fields.pop("images", []), fields.pop("mask", None)
    pictures = pictures if isinstance(pictures, list) else [pictures]
    if not all(isinstance(one, str) for one in (*pictures, mask or "")):
        raise errors.BadRequest("images: each must be base64, a data: URI or a URL.")
    kept = {name: value for name, value in fields.items() if name not in PRIVATE | {"id"}}
    return Order(read_id(job, mapping), pictures, mask, kept, sorted(ignored))


def request_of(order: Order, images: list[ImageRef], mask: ImageRef | None) -> dict[str, Any]:
    """The fields of the `EditRequest` that an order asks for; raises `BadRequest`.

    The predecessor's rules: width and height are a size; 20 or more steps mean the full
    schedule, so without a preset they select `original`.
    """
    fields = dict(order.fields)
    width, height = fields.pop("width", None), fields.pop("height", None)
    if (width is None) != (height is None):
        raise errors.BadRequest("width and height: must be given together.")
    if width is not None:
        fields.setdefault("size", f"{width}x{height}")
    steps = str(fields.get("steps", ""))
    if steps.isdecimal() and len(steps) < STEPS_DIGITS and not fields.get("preset"):
        fields["preset"] = models.implied_preset(int(steps))
    return {**fields, "images": images, "mask": mask}


def picture_url(picture: str, base: str) -> str | None:
    """The address of a picture that is given by URL, None for one that is given itself.

    Raises `BadRequest` unless it is on the server `base`: others would let a job make us
    ask any machine for anything. Base64 of a JPEG begins with /9j/, which is no path.
    """
    relative = picture.startswith("/") and not picture.startswith("/9j/")
    if not relative and not re.match(r"https?://", picture, re.IGNORECASE):
        return None
    try:
        url = urljoin(f"{base}/", picture)
        url.encode()
        same = origin(url) == origin(base) and "@" not in urlsplit(url).netloc
    except ValueError:
        raise errors.BadRequest("images: a URL is none.") from None
    if not same:
        raise errors.BadRequest("images: a URL must be on the queue's own server.")
    return url


def decode_picture(picture: str) -> bytes:
    """The bytes of a base64 text or data: URI; raises `BadRequest`."""
    _, data, text = picture[:256].rpartition(";base64,")
    text = text + picture[256:] if data and picture.startswith("data:") else picture
    try:
        packed = text.encode("ascii").translate(None, b" \r\n\t")
        return base64.b64decode(packed + b"=" * (-len(packed) % 4), validate=True)
    except (UnicodeEncodeError, binascii.Error):
        raise errors.BadRequest("images: is neither base64, nor a data: URI, nor a URL.") from None


def origin(url: str) -> tuple[str, str | None, int]:
    """Scheme, host and port; raises `ValueError` if it has none of those."""
    parts = urlsplit(url)
    usual = 443 if parts.scheme == "https" else 80
    return parts.scheme, parts.hostname, usual if parts.port is None else parts.port


# out: results to answers


def with_id(call: str, id: Id) -> str:
    """Method and path for the job `id`."""
    return call.replace("{id}", quote(str(id), safe=""))


def done(
    mapping: MapSettings, id: Id, pictures: list[bytes], seed: int, elapsed: float | None
) -> dict[str, Any]:
    """A result's fields by our names; pictures are bytes. `images` only where n > 1."""
    return {
        "id": id,
        "status": word(mapping, "done"),
        "image": pictures[0],
        **({"images": pictures} if len(pictures) > 1 else {}),
        "seed": seed,
        "elapsed": elapsed,
    }


def failed(mapping: MapSettings, id: Id, code: str, message: str) -> dict[str, Any]:
    """A failure's fields by our names."""
    return {"id": id, "status": word(mapping, "failed"), "error": message, "code": code}


def word(mapping: MapSettings, name: str) -> str:
    """What the server calls one of the names in `ANSWER`."""
    return mapping.answer.get(name, ANSWER[name])


def as_json(mapping: MapSettings, fields: Mapping[str, Any]) -> tuple[bytes, str]:
    """Body and content type of a result in JSON; equal fields give equal bytes."""
    answer: dict[str, Any] = {}
    for name, value in fields.items():
        if path := word(mapping, name):
            *outer, last = path.split(".")
            place = answer
            for part in outer:
                place = place.setdefault(part, {})
            place[last] = _text(value)
    return json.dumps(answer).encode(), "application/json"


def as_form(mapping: MapSettings, fields: Mapping[str, Any], type: str) -> tuple[bytes, str]:
    """Body and content type of a result as a form; pictures are files of media type `type`.

    The boundary is made from the content, so that equal fields give equal bytes.
    """
    parts = [
        _part(word(mapping, name), item, type)
        for name, value in fields.items()
        if word(mapping, name)
        for item in (value if isinstance(value, list) else [value])
    ]
    boundary = hashlib.sha256(b"".join(parts)).hexdigest()[:40]
    framed = b"".join(b"--%s\r\n%s\r\n" % (boundary.encode(), part) for part in parts)
    body = framed + b"--%s--\r\n" % boundary.encode()
    return body, f"multipart/form-data; boundary={boundary}"


def _part(name: str, value: Any, type: str) -> bytes:
    name = name.replace('"', "%22")
    head = f'Content-Disposition: form-data; name="{name}"'
    if isinstance(value, bytes):
        file = f'{head}; filename="result.{models.SUFFIXES[type]}"\r\nContent-Type: {type}'
        return file.encode() + b"\r\n\r\n" + value
    text = "" if value is None else str(value)
    return f"{head}\r\n\r\n{text}".encode(errors="replace")


def _text(value: Any) -> Any:
    if isinstance(value, list):
        return [_text(item) for item in value]
    return base64.b64encode(value).decode("ascii") if isinstance(value, bytes) else value


# JSON


def parse(body: bytes) -> Any:
    """The JSON of an answer; raises `GarbageError`."""
    if body.lstrip()[:1] == b"<":
        raise GarbageError("answers with a web page, not with JSON; correct its url")
    if sum(body.count(mark) for mark in b"[{,") > ELEMENTS_MAX:
        raise GarbageError(f"answers with JSON of more than {ELEMENTS_MAX} elements")
    try:
        return json.loads(body.decode("utf-8-sig"), parse_constant=_no_constant)
    except (ValueError, RecursionError):
        raise GarbageError("answers with what is not JSON") from None


def dig(value: Any, path: str) -> Any:
    """What lies at `path`, e.g. data.job or 0; all of it for an empty path; None if nothing."""
    for part in path.split(".") if path else ():
        if isinstance(value, dict):
            value = value.get(part)
        elif isinstance(value, list) and part.isdecimal() and int(part) < len(value):
            value = value[int(part)]
        else:
            return None
    return value


def _is_short_text(text: str) -> bool:
    """Whether it can be written and is short; JSON can spell half a character."""
    return len(text) <= ID_MAX and not re.search("[\ud800-\udfff]", text)


def holds(job: Mapping[str, Any], path: str) -> bool:
    """Whether `job` has something at `path`, be it null."""
    outer, _, last = path.rpartition(".")
    place = dig(job, outer)
    return isinstance(place, dict) and last in place


def _id_paths(mapping: MapSettings) -> Iterable[str]:
    given = mapping.fields.get("id")
    return [given] if given else ["id", "job_id"]


def _no_constant(name: str) -> NoReturn:
    raise ValueError(name)
