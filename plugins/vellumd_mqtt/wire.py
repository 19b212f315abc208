"""Translation of what comes in: messages to orders and commands. Pure functions, no broker."""

from __future__ import annotations

import base64
import binascii
import json
import re
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any, NoReturn

from pydantic import AliasChoices

from vellumd import EditRequest, errors
from vellumd_mqtt.connection import RECEIVE_MAX, Message
from vellumd_mqtt.topics import Topics, is_name

JOB_ID_MAX = 64
"""Characters of the longest `job_id` of a sender."""
FIELDS_MAX = 256 << 10
"""Bytes of all of a request that is no picture."""
ELEMENTS_MAX = 100_000
"""Brackets and commas of a message in JSON; pictures have none."""
TEXT_MAX = 72 << 20
"""Bytes that a message in JSON may take as text: one wide character widens all of it."""
ECHO_MAX = 1024
"""Bytes of the longest transaction, and of correlation data: both are kept with the job."""
REPLIES = ("json", "binary")
JSON_FIELDS = ("loras", "output", "meta")
"""Fields that stand as JSON text in user properties."""


@dataclass(frozen=True)
class Reply:
    """Where the answer to a request goes, and what it echoes; kept with the job."""

    transaction: Any = None
    client_job_id: str | None = None
    reply: str = "json"
    reply_to: str | None = None
    response_topic: str = ""
    correlation: bytes | None = None

    def stored(self) -> dict[str, Any]:
        """As JSON, for the delivery's row."""
        fields = {key: value for key, value in vars(self).items() if value not in (None, "")}
        if self.correlation is not None:
            fields["correlation"] = base64.b64encode(self.correlation).decode()
        return fields

    @classmethod
    def restored(cls, stored: dict[str, Any]) -> Reply:
        """What `stored` made."""
        fields = dict(stored)
        if "correlation" in fields:
            fields["correlation"] = base64.b64decode(fields["correlation"])
        return cls(**fields)


@dataclass(frozen=True)
class Order:
    """A request for an edit, its pictures still as they came: bytes, or text to decode."""

    reply: Reply
    fields: dict[str, Any] = field(default_factory=dict)
    pictures: list[bytes | str] = field(default_factory=list)
    mask: str | None = None


class Unreadable(Exception):
    """A request that is refused: why, and where that is told."""

    def __init__(self, reply: Reply, error: errors.VellumError) -> None:
        super().__init__(error.code)
        self.reply = reply
        self.error = error


def read_order(message: Message, topics: Topics, prefixes: Iterable[str]) -> Order:
    """The edit that a message asks for; raises `Unreadable`. Large ones belong into a thread."""
    reply = _echo(message, topics, prefixes)
    try:
        if message.retain:
            raise errors.BadRequest(
                "The request is retained, so it would come again at every connection."
            )
        if not message.payload:
            raise errors.BadRequest("The message is empty.")
        raw = _is_picture(message)
        fields = _properties(message) if raw else _object(message.payload)
        reply = _take_reply(fields, reply)
        pictures, mask = _take_pictures(fields)
        if raw:
            pictures = [message.payload, *pictures]
        _check_text(fields)
        _, preset = topics.request(message.topic)
        if preset:
            fields.setdefault("preset", preset)
    except errors.VellumError as error:
        raise Unreadable(reply, error) from None
    return Order(reply, fields, pictures, mask)


def read_command(
    message: Message, topics: Topics, prefixes: Iterable[str]
) -> tuple[dict[str, Any], Reply]:
    """Fields of a command, and where it is answered; raises `Unreadable`.

    It is a JSON object, a job's id as plain text, or nothing at all.
    """
    reply = _echo(message, topics, prefixes)
    try:
        if message.retain:
            raise errors.BadRequest("The command is retained.")
        verb, rest = topics.request(message.topic)
        if rest:
            raise errors.BadRequest(f"Commands have no levels behind request/{verb}.")
        fields = _properties(message)
        text = message.payload.strip()
        if text.startswith(b"{"):
            fields |= _object(message.payload)
        elif text:
            fields["job_id"] = _text(text)
        _check_text(fields)
        job_id = fields.get("job_id")
        reply = _take_reply(fields, reply)
    except errors.VellumError as error:
        raise Unreadable(reply, error) from None
    return ({"job_id": job_id} if job_id else {}) | fields, reply


def _echo(message: Message, topics: Topics, prefixes: Iterable[str]) -> Reply:
    """What is known of the answer's way before the request is read."""
    topic = message.response_topic
    if topic and not topics.may_answer_to(topic, prefixes):
        topic = ""
    correlation = message.correlation
    if correlation is not None and len(correlation) > ECHO_MAX:
        correlation = None
    return Reply(response_topic=topic, correlation=correlation)


def _is_picture(message: Message) -> bool:
    """Whether the payload is a picture's bytes: told so, or no JSON at first sight."""
    if message.content_type:
        return message.content_type.lower().startswith("image/")
    return not message.payload[:64].lstrip(b"\xef\xbb\xbf \r\n\t").startswith((b"{", b"["))


def _text(data: bytes) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise errors.BadRequest("The message is not UTF-8 text.") from None


def _no_constant(name: str) -> NoReturn:
    raise errors.BadRequest(f"The message holds {name}, which is not JSON.")


def _json(text: str, what: str) -> Any:
    try:
        return json.loads(text, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        raise errors.BadRequest(f"{what} is not JSON.") from None


def _object(payload: bytes) -> dict[str, Any]:
    """The JSON object of a message. Many elements, or wide characters, would take many times
    its memory.
    """
    if len(payload) > RECEIVE_MAX:  # before MQTT 5 brokers hand over everything
        raise errors.PayloadTooLarge(f"The message is larger than {RECEIVE_MAX >> 20} MiB.")
    if sum(payload.count(mark) for mark in b"[{,") > ELEMENTS_MAX:
        raise errors.BadRequest(f"The message has more than {ELEMENTS_MAX} elements.")
    text = _text(payload)
    if sys.getsizeof(text) > TEXT_MAX:
        raise errors.PayloadTooLarge("The message has too much text for its characters.")
    fields = _json(text, "The message")
    if not isinstance(fields, dict):
        raise errors.BadRequest("The message is not a JSON object.")
    return fields


def _properties(message: Message) -> dict[str, Any]:
    """User properties as fields."""
    fields: dict[str, Any] = dict(message.properties)
    for name in JSON_FIELDS:
        if name in fields:
            fields[name] = _json(fields[name], f"{name}: it")
    return fields


def _take_reply(fields: dict[str, Any], reply: Reply) -> Reply:
    """Remove from `fields` what concerns the answer alone, and add it to `reply`.

    What is wrong there is told with all that was right before it.
    """
    transaction, job_id = fields.pop("transaction", None), fields.pop("job_id", None)
    wanted, reply_to = fields.pop("reply", None), fields.pop("reply_to", None)
    try:
        if _length(transaction) > ECHO_MAX:
            raise errors.BadRequest(f"transaction: it is longer than {ECHO_MAX} bytes of JSON.")
        reply = replace(reply, transaction=transaction)
        if reply_to is not None and not (isinstance(reply_to, str) and _is_level(reply_to)):
            raise errors.BadRequest("reply_to: it must be a text without +, # and spaces around.")
        reply = replace(reply, reply_to=reply_to)
        if job_id is not None and not (isinstance(job_id, str) and 0 < len(job_id) <= JOB_ID_MAX):
            raise errors.BadRequest(f"job_id: it must be a text of 1 to {JOB_ID_MAX} characters.")
        _length(job_id)
        reply = replace(reply, client_job_id=job_id)
        if wanted not in (None, *REPLIES):
            raise errors.BadRequest("reply: it must be json or binary.")
    except errors.BadRequest as error:
        raise Unreadable(reply, error) from None
    return replace(reply, reply=wanted or "json")


def _is_level(text: str) -> bool:
    return is_name(text) and len(text) <= 128 and text == text.strip(" /")


def _length(value: Any) -> int:
    """Bytes of `value` as JSON; raises `BadRequest` for what no JSON of ours may hold.

    That is half surrogate pairs, deep nests, and the infinity that 1e999 is read as.
    """
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        return len(text.encode())
    except UnicodeEncodeError:
        raise errors.BadRequest("A field holds text that is not Unicode.") from None
    except ValueError:
        raise errors.BadRequest("A field holds a number that is too large.") from None
    except RecursionError:
        raise errors.BadRequest("A field is nested too deep.") from None


def _check_text(fields: dict[str, Any]) -> None:
    if _length(fields) > FIELDS_MAX:
        raise errors.BadRequest(f"The fields take more than {FIELDS_MAX >> 10} KiB.")


def _spellings() -> tuple[str, ...]:
    alias = EditRequest.model_fields["images"].validation_alias
    assert isinstance(alias, AliasChoices)
    return tuple(name for name in alias.choices if isinstance(name, str))


PICTURES = _spellings()
"""Names under which the pictures of an edit may come."""


def _take_pictures(fields: dict[str, Any]) -> tuple[list[bytes | str], str | None]:
    """Remove the pictures and the mask from `fields`."""
    given = [fields.pop(name) for name in PICTURES if name in fields]
    given = [one for one in given if one is not None]
    if len(given) > 1:
        raise errors.BadRequest("images: is given under two names.")
    pictures = given[0] if given else []
    pictures = pictures if isinstance(pictures, list) else [pictures]
    mask = fields.pop("mask", None) or None
    for picture in (*pictures, *([mask] if mask is not None else ())):
        if not isinstance(picture, str):
            raise errors.BadRequest("images: each must be a text: base64 or sha256:HASH.")
    return pictures, mask


_DATA_URI = re.compile(r"data:[\w.+/-]*(;[\w=.+-]+)*;base64,", re.IGNORECASE)
_STAGED = re.compile(r"sha256:([0-9a-fA-F]{64})")


def staged_hash(picture: bytes | str) -> str | None:
    """The hash in `sha256:…`, or None for a picture that is given otherwise."""
    found = _STAGED.fullmatch(picture) if isinstance(picture, str) else None
    return found[1].lower() if found else None


def decode_picture(picture: str) -> bytes:
    """The bytes of a picture given as base64 or as data URI; raises `BadRequest`."""
    if "://" in picture[:16]:
        raise errors.BadRequest("images: must be base64, a data: URI or sha256:HASH, not a URL.")
    head = _DATA_URI.match(picture[:256])
    try:
        text = (picture[head.end() :] if head else picture).encode("ascii")
        if any(space in text for space in b" \r\n\t"):
            text = text.translate(None, b" \r\n\t")
        return base64.b64decode(text + b"=" * (-len(text) % 4), validate=True)
    except (UnicodeEncodeError, binascii.Error):
        raise errors.BadRequest("images: is neither base64 nor a base64 data: URI.") from None
