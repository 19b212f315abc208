"""Translation between HTTP and vellumd's own terms: pure functions, no sockets."""

from __future__ import annotations

import base64
import binascii
import json
import math
import re
import sys
from collections.abc import Collection, Iterable, Mapping
from typing import Any, Literal, NoReturn

from pydantic import AliasChoices, TypeAdapter, ValidationError

from vellumd import EditRequest, Job, errors, models

WAIT_MAX = 300
"""Longest wait in seconds that `Prefer: wait=N` gets; proxies cut longer ones."""

KEY_MAX = 255
"""Longest Idempotency-Key in characters."""

ELEMENTS_MAX = 100_000
"""Most brackets and commas of a JSON body."""
TEXT_MAX = 72 << 20
"""Most bytes that a JSON body takes once decoded: wide characters widen all of it."""
FIELD_MAX = 1 << 20
"""Longest text of one field that is no picture."""
DEPTH_MAX = 32
"""Deepest nesting of a field."""

HELD = {
    "": "",
    "paused": "The queue is paused: jobs wait until somebody resumes it.",
    "storage_full": "The disk has no room for results; the queue waits for some.",
    "stopping": "The daemon is stopping; jobs wait for the next one.",
}
"""Why the queue starts no job, by `held` of `info`."""

Format = Literal["png", "jpeg", "webp"]
FORMATS: dict[str, Format] = {"png": "png", "jpeg": "jpeg", "jpg": "jpeg", "webp": "webp"}
"""What pictures can leave as, by each of its names."""

_FLAG = TypeAdapter(bool)

JSON_FIELDS = ("loras", "output", "meta")
"""Fields that stand as JSON text in a form."""


def _spellings(name: str) -> set[str]:
    alias = EditRequest.model_fields[name].validation_alias
    choices = alias.choices if isinstance(alias, AliasChoices) else ()
    return {name, *(choice for choice in choices if isinstance(choice, str))}


PICTURES = frozenset(_spellings("images") | {f"{name}[]" for name in _spellings("images")})
"""Names under which the pictures of an edit may come."""

FIELDS = frozenset().union(*(_spellings(name) for name in EditRequest.model_fields)) | PICTURES
"""Every field name of an edit, other spellings included."""

LEGACY_FIELDS = FIELDS | {"width", "height"}


# in: bodies to fields


def _no_constant(name: str) -> NoReturn:
    raise errors.BadRequest(f"The body holds {name}, which is not JSON.")


def parse_object(body: bytearray) -> dict[str, Any]:
    """The JSON object in `body`; raises `BadRequest`. Big ones belong into a thread.

    Empties `body` on the way. Pictures are few long texts, so neither many elements nor
    text that Python holds in four bytes a character is needed: both would multiply the
    memory.
    """
    if sum(body.count(mark) for mark in b"[{,") > ELEMENTS_MAX:
        raise errors.BadRequest(f"The JSON has more than {ELEMENTS_MAX} elements.")
    try:
        text = body.decode(json.detect_encoding(body))
        body.clear()
        if sys.getsizeof(text) > TEXT_MAX:
            raise errors.PayloadTooLarge("The JSON has too much text for its characters.")
        fields = json.loads(text, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        raise errors.BadRequest("The body is not JSON.") from None
    if not isinstance(fields, dict):
        raise errors.BadRequest("The body is not a JSON object.")
    return fields


def check_text(fields: dict[str, Any]) -> None:
    """Refuse what no field needs: huge or deep values, and text that is not Unicode.

    JSON can spell half a surrogate pair, which no file and no database takes.
    """
    left: list[tuple[Any, int]] = [(fields, 0)]
    while left:
        value, depth = left.pop()
        if depth > DEPTH_MAX:
            raise errors.BadRequest(f"A field is nested deeper than {DEPTH_MAX} levels.")
        if isinstance(value, dict):
            left.extend((inner, depth + 1) for pair in value.items() for inner in pair)
        elif isinstance(value, list):
            left.extend((inner, depth + 1) for inner in value)
        elif isinstance(value, str):
            _check_one_text(value)


def _check_one_text(text: str) -> None:
    if len(text) > FIELD_MAX:
        raise errors.BadRequest("A text field is longer than 1 MiB.")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise errors.BadRequest("A field holds text that is not Unicode.") from None


def form_fields(texts: dict[str, str]) -> dict[str, Any]:
    """Form fields as those of JSON: empty ones count as absent, `JSON_FIELDS` are parsed."""
    fields: dict[str, Any] = {}
    for name, text in texts.items():
        if name in JSON_FIELDS and text.strip():
            try:
                fields[name] = json.loads(text, parse_constant=_no_constant)
            except (ValueError, RecursionError):
                raise errors.BadRequest(f"{name}: is not JSON.") from None
        elif name not in JSON_FIELDS and (text or name == "prompt"):
            fields[name] = text
    return fields


def take_pictures(fields: dict[str, Any]) -> tuple[list[Any], Any]:
    """Remove the pictures and the mask from `fields` and return them as they came."""
    given = [fields.pop(name) for name in sorted(PICTURES & fields.keys())]
    given = [one for one in given if one is not None]
    if len(given) > 1:
        raise errors.BadRequest("images: is given under two names.")
    pictures = given[0] if given else []
    return (pictures if isinstance(pictures, list) else [pictures]), fields.pop("mask", None)


_DATA_URI = re.compile(r"data:[\w.+/-]*(;[\w=.+-]+)*;base64,", re.IGNORECASE)
_STAGED = re.compile(r"sha256:([0-9a-fA-F]{64})")


def staged_hash(picture: Any) -> str | None:
    """The hash in `sha256:…`, or None for a picture that is given otherwise."""
    found = _STAGED.fullmatch(picture) if isinstance(picture, str) else None
    return found[1].lower() if found else None


def decode_picture(picture: Any, field: str) -> bytes:
    """The bytes of a base64 text or data URI; raises `BadRequest` naming `field`."""
    if not isinstance(picture, str) or "://" in picture[:16]:
        raise errors.BadRequest(f"{field}: must be base64, a data: URI or sha256:HASH, not a URL.")
    head = _DATA_URI.match(picture[:256])
    try:
        text = (picture[head.end() :] if head else picture).encode("ascii")
        if any(space in text for space in b" \r\n\t"):
            text = text.translate(None, b" \r\n\t")
        text += b"=" * (-len(text) % 4)
        return base64.b64decode(text, validate=True)
    except (UnicodeEncodeError, binascii.Error):
        raise errors.BadRequest(f"{field}: is neither base64 nor a base64 data: URI.") from None


def clean_name(name: str | None) -> str:
    """A sender's file name without folders and control characters, at most 255 long."""
    last = (name or "").replace("\\", "/").rpartition("/")[2]
    return "".join(char for char in last if char.isprintable())[-255:]


def legacy_request(
    fields: dict[str, Any], legacy_size: Literal["match", "auto"]
) -> tuple[EditRequest, list[models.Notice]]:
    """The edit that `POST /generate` asks for, and the warnings about ignored fields.

    Rules of the predecessor: width and height are a size; 20 or more steps mean the
    full schedule, so without a preset they select `original`.
    """
    unknown = fields.keys() - LEGACY_FIELDS
    known = {name: value for name, value in fields.items() if name in LEGACY_FIELDS}
    width, height = known.pop("width", None), known.pop("height", None)
    if (width is None) != (height is None):
        raise errors.BadRequest("width and height: must be given together.")
    if known.get("size") is None:
        known["size"] = legacy_size if width is None else f"{width}x{height}"
    request = EditRequest.parse(known)
    preset = request.preset or models.implied_preset(request.steps)
    request = request.model_copy(update={"preset": preset})
    return request, ignored(unknown)


def ignored(names: Collection[str]) -> list[models.Notice]:
    """The warning about fields that nobody understood; none if there are none."""
    if not names:
        return []
    shown = ", ".join(name[:40] for name in sorted(names)[:8])
    return [models.Notice(code="unknown_field", message=f"Ignored, not understood: {shown}.")]


def idempotency_key(header: str) -> str | None:
    """The key of an Idempotency-Key header; None if it is absent or empty."""
    key = header.strip()
    if len(key) > KEY_MAX:
        raise errors.BadRequest(f"Idempotency-Key: is longer than {KEY_MAX} characters.")
    if not key.isascii():
        raise errors.BadRequest("Idempotency-Key: must be ASCII.")
    return key or None


def prefer_wait(preferences: Iterable[str]) -> int | None:
    """Seconds of `Prefer: wait=N` (RFC 7240), at most `WAIT_MAX`; None if not asked for."""
    for preference in ",".join(preferences).split(","):
        found = re.fullmatch(r'wait\s*=\s*"?(\d{1,9})"?', preference.partition(";")[0].strip())
        if found:
            return min(int(found[1]), WAIT_MAX)
    return None


def media_types(accept: str) -> set[str]:
    """The media ranges of an Accept header, without their parameters."""
    return {part.partition(";")[0].strip().lower() for part in accept.split(",")}


def wants_picture(accept: str) -> bool:
    """Whether the caller asks for the picture's bytes rather than JSON."""
    ranges = media_types(accept)
    listed = any(one.startswith("image/") for one in ranges)
    return listed and not ranges & {"application/json", "application/*"}


def check_query(query: Mapping[str, str], known: Collection[str]) -> None:
    """Refuse a query parameter that the route does not know."""
    for name in query:
        if name not in known:
            raise errors.BadRequest(f"{name[:80]}: is not a parameter of this address.")


def query_int(query: Mapping[str, str], name: str, least: int = 0) -> int | None:
    """A whole number of the query, or None where it is absent."""
    text = query.get(name)
    if text is None:
        return None
    if not re.fullmatch(r"[0-9]{1,18}", text) or int(text) < least:
        raise errors.BadRequest(f"{name}: must be a whole number of at least {least}.")
    return int(text)


def flag(fields: Mapping[str, Any], name: str) -> bool:
    """A switch of a query or a form; False where it is absent or empty.

    Forms have no booleans, so it is spelled as people do: true, yes, on, 1 and their opposites.
    """
    if fields.get(name) in (None, ""):
        return False
    try:
        return _FLAG.validate_python(fields[name])
    except ValidationError:
        raise errors.BadRequest(f"{name}: must be true or false.") from None


# out: jobs and errors to answers


def doors(info: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """How the daemon's transports are, without their addresses."""
    shown = ("ok", "text", "crashes")
    return {n: {key: door[key] for key in shown} for n, door in info["transports"].items()}


def trouble(info: Mapping[str, Any]) -> str | None:
    """Why a job that comes now is not edited; None if it is, or is held on purpose."""
    if not info["store"]["writable"]:
        return str(info["store"]["reason"])
    if not info["engine"]["ready"]:
        return str(info["engine"]["reason"])
    return HELD["storage_full"] if info["queue"]["held"] == "storage_full" else None


def legacy_answer(
    job: Job, pictures: list[bytes], warnings: Iterable[models.Notice]
) -> dict[str, Any]:
    """The answer of `POST /generate`: the first picture, and all where there are several."""
    encoded = [base64.b64encode(picture).decode("ascii") for picture in pictures]
    first = job.results[0]
    return {
        "image": encoded[0],
        **({"images": encoded} if len(encoded) > 1 else {}),
        "seed": first.seed,
        "width": first.width,
        "height": first.height,
        "elapsed": job.elapsed_s,
        "job_id": job.id,
        "model": job.model,
        "warnings": [one.model_dump() for one in (*job.warnings, *warnings)],
    }


def problem(error: errors.VellumError, status: int | None = None) -> dict[str, Any]:
    """An error as RFC 9457 problem details."""
    shown = error.public()
    return {
        "type": f"urn:vellumd:error:{error.code}",
        "title": error.code.replace("_", " ").capitalize(),
        "status": status or error.status,
        "detail": shown["message"],
        "code": error.code,
        "retryable": error.retryable,
    }


def legacy_error(error: errors.VellumError) -> dict[str, Any]:
    """An error as the predecessor's clients read it."""
    return {"detail": error.public()["message"], "code": error.code}


RETRY_AFTER = 10
"""Seconds told for a retryable error that knows no better."""


def error_headers(error: errors.VellumError) -> dict[str, str]:
    """The headers that belong to an error's answer."""
    headers = {}
    if error.retryable or error.retry_after is not None:
        seconds = RETRY_AFTER if error.retry_after is None else error.retry_after
        headers["Retry-After"] = str(max(1, math.ceil(seconds)))
    if isinstance(error, errors.Unauthorized):
        headers["WWW-Authenticate"] = "Bearer"
    return headers
