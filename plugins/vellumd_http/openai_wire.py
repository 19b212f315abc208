"""Translation between OpenAI's image edits and vellumd's own terms: pure functions.

Shapes are those of https://platform.openai.com/docs/api-reference/images, as the `openai`
client reads them; what it needs and an edit has not (tokens) is told as zero.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

from vellumd import EditRequest, Job, errors, models
from vellumd_http import wire

PATHS = ("/v1/images/", "/v1/models")
"""Where this dialect is spoken, errors included."""

OWN = frozenset({
    "model", "quality", "output_format", "output_compression", "background", "input_fidelity",
    "response_format", "stream", "partial_images", "user", "safety_identifier", "moderation",
})  # fmt: skip
"""Fields of this dialect that are none of an edit's own."""
FIELDS = wire.FIELDS | OWN

QUALITIES = {
    "low": ("fastest", "balanced", "original"),
    "medium": ("balanced", "original"),
    "standard": ("balanced", "original"),
    "high": ("original",),
    "hd": ("original",),
    "xhigh": ("original",),
    "max": ("original",),
    "auto": (),
}
"""Presets that a quality means, the first that the model has the LoRAs for. Without one the
default preset runs. `standard` and `hd` are of older models, `xhigh` and `max` of newer ones."""
TOLD_QUALITY = {"fastest": "low", "balanced": "medium", "original": "high"}
BACKGROUNDS = {"transparent": "reapply", "opaque": "flatten", "auto": None}
"""What becomes of image 1's transparency."""
PARTIALS_MAX = 3
CLIENT_MAX = 128
"""Longest `client_id`."""
RETRIED = "x-stainless-retry-count"
"""Header in which OpenAI's clients say which repetition a request is; `0` for the first."""

_TYPES = {
    401: "authentication_error", 403: "permission_error", 404: "not_found_error",
    429: "rate_limit_error",
}  # fmt: skip
_PARAMS = {
    "bad_image": "image", "unsupported_format": "image", "image_too_large": "image",
    "too_many_images": "image", "bad_size": "size", "unknown_preset": "preset",
    "unknown_lora": "loras", "unknown_tier": "tier",
}  # fmt: skip
_RENAMED = {
    "images": "image", "steps": "num_inference_steps", "client_id": "user",
    "output.format": "output_format", "output.quality": "output_compression",
}  # fmt: skip
_NAMED = re.compile(r"(images|mask)(?:\.\d+)?: |([a-z_]+(?:\.[a-z]+)?): ")


@dataclass(frozen=True)
class Asked:
    """What a call asks for: the edit, and how to answer."""

    edit: EditRequest
    warnings: list[models.Notice]
    stream: bool
    partials: int
    url: bool


def asked(fields: dict[str, Any], usable: Collection[str]) -> Asked:
    """The call that `fields` make; `usable` are the presets that this model can run.

    Raises `BadRequest` and what `EditRequest.parse` raises.
    """
    given = {name: value for name, value in fields.items() if value is not None}
    ignored = given.keys() - FIELDS
    edit = {name: value for name, value in given.items() if name in wire.FIELDS}
    edit["size"] = _size(given)
    edit["client_id"] = _client(given)
    edit["output"] = _output(given)
    if not edit.get("prompt"):  # clients must send one; a preset may hold a better one
        edit.pop("prompt", None)
    request = EditRequest.parse(edit)
    preset = request.preset or _preset(given, usable) or models.implied_preset(request.steps)
    return Asked(
        edit=request.model_copy(update={"preset": preset}),
        warnings=wire.ignored(ignored),
        stream=wire.flag(given, "stream"),
        partials=_partials(given),
        url=_choice(given, "response_format", ("b64_json", "url")) == "url",
    )


def is_path(path: str) -> bool:
    """Whether who asks for `path` speaks this dialect."""
    return path.startswith(PATHS)


def retried(count: str) -> bool:
    """Whether the header `RETRIED` tells a repetition."""
    return count.isdecimal() and int(count[:9]) > 0


def _choice(given: dict[str, Any], name: str, known: Collection[str]) -> str | None:
    value = given.get(name)
    if value is not None and (not isinstance(value, str) or value.lower() not in known):
        raise errors.BadRequest(f"{name}: must be one of {', '.join(known)}.")
    return value.lower() if value else None


def _number(given: dict[str, Any], name: str, most: int) -> int | None:
    text = str(given.get(name, ""))
    if text and (not re.fullmatch(r"[0-9]{1,9}", text) or int(text) > most):
        raise errors.BadRequest(f"{name}: must be a whole number from 0 to {most}.")
    return int(text) if text else None


def _partials(given: dict[str, Any]) -> int:
    return _number(given, "partial_images", PARTIALS_MAX) or 0


def _size(given: dict[str, Any]) -> Any:
    """`auto` is what `match` is elsewhere: as large as the picture that is edited."""
    size = given.get("size")
    text = size.lower() if isinstance(size, str) else size
    return "match" if text in (None, "", "auto") else text


def _client(given: dict[str, Any]) -> str | None:
    client = given.get("safety_identifier") or given.get("user") or given.get("client_id")
    return str(client)[:CLIENT_MAX] if client else None


def _preset(given: dict[str, Any], usable: Collection[str]) -> str | None:
    quality = _choice(given, "quality", QUALITIES)
    return next((name for name in QUALITIES[quality or "auto"] if name in usable), None)


def _output(given: dict[str, Any]) -> Any:
    output = given.get("output", {})
    if not isinstance(output, dict):
        return output  # for `EditRequest` to complain about
    format = _choice(given, "output_format", wire.FORMATS)
    compression = _number(given, "output_compression", 100)
    background = _choice(given, "background", BACKGROUNDS)
    if background == "transparent" and format in ("jpeg", "jpg"):
        raise errors.BadRequest("background: transparent needs output_format png or webp.")
    said = {
        "format": wire.FORMATS[format] if format else None,
        "quality": None if compression is None else max(1, compression),
        "alpha": BACKGROUNDS[background or "auto"],
    }
    return {**output, **{name: value for name, value in said.items() if value is not None}}


# out


def spread(steps: int, count: int) -> list[int]:
    """`count` of the steps before the last one, evenly; all of them if there are no more."""
    if steps <= count:
        return list(range(1, steps))
    parts = count + 1
    return [(part * steps + parts // 2) // parts for part in range(1, parts)]


_USAGE = {
    "input_tokens": 0,
    "input_tokens_details": {"image_tokens": 0, "text_tokens": 0},
    "output_tokens": 0,
    "output_tokens_details": {"image_tokens": 0, "text_tokens": 0},
    "total_tokens": 0,
}


def answer(
    job: Job,
    contents: Sequence[Callable[[], bytes] | str],
    warnings: Sequence[models.Notice],
) -> bytes:
    """The whole answer of a finished job; each of `contents` is a URL or reads a picture."""
    data = [
        {
            **({"url": content} if isinstance(content, str) else {"b64_json": _b64(content())}),
            "seed": result.seed,
        }
        for content, result in zip(contents, job.results, strict=True)
    ]
    first = job.results[0]
    shown = {
        "created": _seconds(job),
        "background": _background(job),
        "data": data,
        "output_format": first.type.removeprefix("image/"),
        "quality": _quality(job),
        "size": f"{first.width}x{first.height}",
        "usage": _USAGE,
        **_own(job, warnings),
    }
    return json.dumps({name: value for name, value in shown.items() if value != "auto"}).encode()


def completed(
    job: Job, result: models.Result, picture: bytes, warnings: Sequence[models.Notice]
) -> bytes:
    """The last event of a stream, with a finished picture."""
    told = {
        "b64_json": _b64(picture),
        "background": _background(job),
        "created_at": _seconds(job),
        "output_format": result.type.removeprefix("image/"),
        "quality": _quality(job),
        "size": f"{result.width}x{result.height}",
        "usage": _USAGE,
        "seed": result.seed,
        **_own(job, warnings),
    }
    return _event("image_edit.completed", told)


def partial(job: Job, index: int, at: int, picture: bytes, format: str) -> bytes:
    """An event with what a running edit looks like; `at` is Unix time."""
    told = {
        "b64_json": _b64(picture),
        "background": _background(job),
        "created_at": at,
        "output_format": format,
        "partial_image_index": index,
        "quality": _quality(job),
        "size": _asked_size(job),
    }
    return _event("image_edit.partial_image", told)


def failed(error: errors.VellumError) -> bytes:
    """The event that ends a stream without a picture."""
    return _event("error", public_error(error))


def public_error(error: errors.VellumError) -> dict[str, Any]:
    """An error as OpenAI's clients read it."""
    status = status_of(error)
    kind = "server_error" if status >= 500 else "invalid_request_error"
    return {
        "error": {
            "message": error.public()["message"],
            "type": _TYPES.get(status, kind),
            "param": _param(error),
            "code": error.code,
        }
    }


def status_of(error: errors.VellumError) -> int:
    """Its HTTP status, but never 409: their clients repeat a request on that."""
    return 400 if error.status == 409 else error.status


def model(name: str, since: int) -> dict[str, Any]:
    """A model as their lists show it."""
    return {"id": name, "object": "model", "created": since, "owned_by": "vellumd"}


def _param(error: errors.VellumError) -> str | None:
    """The field that the error is about, by its name in this dialect."""
    found = _NAMED.match(error.message)
    name = (found[1] or found[2]) if found else _PARAMS.get(error.code)
    return _RENAMED.get(name, name) if name else None


def _event(type: str, told: dict[str, Any]) -> bytes:
    return f"event: {type}\ndata: {json.dumps({'type': type, **told})}\n\n".encode()


def _own(job: Job, warnings: Sequence[models.Notice]) -> dict[str, Any]:
    """What vellumd says besides; clients keep fields that they do not know."""
    notices = [one.model_dump() for one in (*job.warnings, *warnings)]
    return {"job_id": job.id, "model": job.model, "warnings": notices}


def _b64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def _seconds(job: Job) -> int:
    return int((job.ended or job.created).timestamp())


def _quality(job: Job) -> str:
    preset = job.request.preset if job.request else None
    return TOLD_QUALITY.get(preset or "", "auto")


def _background(job: Job) -> str:
    output = job.request.output if job.request else models.ResolvedOutput()
    return "transparent" if output.alpha == "reapply" and output.format != "jpeg" else "opaque"


def _asked_size(job: Job) -> str:
    size = job.request.size if job.request else "match"
    return size if re.fullmatch(r"\d+x\d+", size) else "auto"
