"""Translation: what lies in a folder as an EditRequest, a job's end as a sentence. Pure."""

from __future__ import annotations

import codecs
import json
import locale
import tomllib
from collections.abc import Iterable, Mapping
from typing import Any

from vellumd import EditRequest, ImageRef, errors

Fields = dict[str, Any]

OUTPUT: Fields = {"format": "same", "keep": ["exif", "xmp", "iptc", "icc"], "embed": "id"}
"""How results are written unless somebody says otherwise: like the original, no prompt in it."""
TEXT_MAX = 64 << 10
"""Bytes of a sidecar; longer ones are no prompts."""

_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_GUESSES = ("cp949", "cp1252", "latin-1")
"""Code pages of texts that say nothing about themselves, most telling first: what is valid
cp949 is hardly ever cp1252; latin-1 takes everything."""


def decode(data: bytes, code_page: str | None = None) -> str:
    """The text of a sidecar: UTF-8, UTF-16, else the system's code page, else a likely one."""
    for mark, encoding in _MARKS:
        if data.startswith(mark):
            return data.decode(encoding, "replace")
    if bare := _bare_utf16(data):
        return data.decode(bare, "replace")
    for encoding in ("utf-8", code_page or locale.getencoding(), *_GUESSES):
        try:
            return data.decode(encoding)
        except UnicodeDecodeError:
            continue
    raise AssertionError("latin-1 decodes anything")


def _bare_utf16(data: bytes) -> str | None:
    """UTF-16 without a mark, told by the zero bytes that its ASCII letters have."""
    if len(data) % 2 or b"\0" not in data:
        return None
    return "utf-16-le" if data[1::2].count(0) >= data[0::2].count(0) else "utf-16-be"


def read_text(name: str, data: bytes) -> Fields:
    """The edit's fields that a text beside pictures holds.

    A `.txt` holds a prompt, `.json` an object, `.toml` a table of fields. Raises
    `BadRequest` for what cannot be read.
    """
    if len(data) > TEXT_MAX:
        raise errors.BadRequest(f"{name}: it is longer than {TEXT_MAX >> 10} KiB.")
    text = decode(data).strip()
    if name.lower().endswith(".txt"):
        return {"prompt": text} if text else {}
    try:
        fields = tomllib.loads(text) if name.lower().endswith(".toml") else json.loads(text)
    except (ValueError, RecursionError):
        kind = "TOML" if name.lower().endswith(".toml") else "JSON"
        raise errors.BadRequest(f"{name}: it is not valid {kind}.") from None
    if not isinstance(fields, dict):
        raise errors.BadRequest(f"{name}: it must hold an object of edit fields.")
    for field in ("images", "image", "mask"):
        if field in fields:
            raise errors.BadRequest(f"{name}: {field}: the pictures are the files beside it.")
    return fields


def layer(weak: Fields, strong: Fields, presets: Mapping[str, Fields]) -> Fields:
    """`weak` with what `strong` says.

    A preset brings its own prompt: one that was said further away goes.
    """
    fields = {**weak, **strong}
    if "prompt" not in strong and has_prompt(strong, presets):
        fields.pop("prompt", None)
    if isinstance(weak.get("output"), dict) and isinstance(strong.get("output"), dict):
        fields["output"] = {**weak["output"], **strong["output"]}
    return fields


def has_prompt(fields: Fields, presets: Mapping[str, Fields]) -> bool:
    """Whether these fields or their preset say what to do."""
    preset = fields.get("preset")
    named = presets.get(preset, {}) if isinstance(preset, str) else {}
    return bool(fields.get("prompt") or named.get("prompt"))


def request(
    fields: Fields,
    images: Iterable[ImageRef],
    presets: Mapping[str, Fields],
    *,
    folder: str,
    batch: str | None,
) -> EditRequest:
    """The request for pictures of the hot folder `folder`; raises the fields' own errors."""
    preset = fields.get("preset")
    named = presets.get(preset, {}) if isinstance(preset, str) else {}
    said = {k: v for k, v in (named.get("output") or {}).items() if v is not None}
    own = fields.get("output")
    output = (
        own if own is not None and not isinstance(own, dict) else {**OUTPUT, **said, **(own or {})}
    )
    standard = {"client_id": folder, "batch": batch}
    return EditRequest.parse({**standard, **fields, "output": output, "images": list(images)})


def sentence(error: errors.VellumError, job_id: str = "") -> str:
    """What NAME.error.txt says: what was wrong, what to do, and how support finds it."""
    where = f", job {job_id}" if job_id else ""
    return f"{error.public()['message']} (code: {error.code}{where})\n"
