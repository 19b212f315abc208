"""The OpenAPI 3.1 description, by hand: routes in a table, schemas from the models."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from pydantic.json_schema import models_json_schema

from vellumd import EditRequest, Job, JobEvent, JobStatus, errors, models
from vellumd_http import openai_wire
from vellumd_http.answers import LEGACY_PATHS
from vellumd_http.native import PriorityPatch

_EVERYWHERE = ("forbidden_host", "unauthorized", "internal")
_CHANGES = ("forbidden_origin",)
_BODY = ("bad_request", "payload_too_large", "body_timeout")
_PICTURE = (*_BODY, "bad_image", "unsupported_format", "image_too_large", "storage_full")
_EDIT = (
    *_PICTURE, "too_many_images", "bad_size", "unknown_preset", "unknown_lora", "unknown_tier",
    "not_found", "queue_full", "engine_unavailable",
)  # fmt: skip
_ENDED = (
    "cancelled", "expired", "out_of_memory", "engine_crashed", "bad_output", "bad_image",
    "engine_unavailable", "storage_full", "result_too_large",
)  # fmt: skip
_OPEN = ("/", "/static/{file}", "/healthz", "/readyz", "/r/{job}/{n}")

Schema = dict[str, Any]


def _ref(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


_JOB = {"application/json": {"schema": _ref("Job")}}
_PIXELS = {"image/*": {"schema": {"type": "string", "format": "binary"}}}
_EVENTS = {"text/event-stream": {"schema": {"type": "string"}}}
_TEXT = {"text/plain": {"schema": {"type": "string"}}}
_ANY: Schema = {"application/json": {"schema": {"type": "object"}}}
_PRESET = {"application/json": {"schema": _ref("Preset")}}
_HELD = {"application/json": {"schema": _ref("Control")}}
_EDIT_BODY = {
    "application/json": {"schema": _ref("Edit")},
    "multipart/form-data": {"schema": _ref("EditForm")},
}


@dataclass(frozen=True)
class Operation:
    """One method of one path."""

    method: str
    path: str
    summary: str
    answers: dict[int, tuple[str, Schema]]
    codes: tuple[str, ...] = ()
    body: Schema | None = None
    parameters: tuple[Schema, ...] = ()


def _query(name: str, text: str, type: str = "string", **schema: Any) -> Schema:
    return {
        "name": name, "in": "query", "description": text, "schema": {"type": type, **schema},
    }  # fmt: skip


def _header(name: str, text: str) -> Schema:
    return {"name": name, "in": "header", "description": text, "schema": {"type": "string"}}


_WAIT = _header("Prefer", "`wait=N`: answer when the job has ended, after N ≤ 300 s at most.")
_KEY = _header("Idempotency-Key", "The same key with an equal request gives the same job.")
_ETAG = _header("If-None-Match", "The picture's SHA-256 in quotes: 304 if you have it.")
_DERIVED = (
    _ETAG,
    _query("format", "Re-encode.", enum=["png", "jpeg", "webp"]),
    _query("max_bytes", "Reduce until it fits.", "integer", minimum=1024),
    _query("max_side", "No side with more pixels.", "integer", minimum=16),
)
_STREAM = (
    _header("Last-Event-ID", "Go on after this event."),
    _query("since", "Go on after this event.", "integer", minimum=0),
    _query("preview", "1: also previews of running steps."),
)
_LISTED = (
    _query("status", "Only this status.", enum=list(JobStatus)),
    _query("source", "Only jobs that came by this door."),
    _query("batch", "Only jobs of this batch."),
    _query("client_id", "Only jobs of this client."),
    _query("cursor", "`next` of the page before."),
)

OPERATIONS = (
    Operation("post", "/generate", "Edit and wait for the picture, as the predecessor did.",
        {200: ("The picture.", {"application/json": {"schema": _ref("Generated")}, **_PIXELS})},
        (*_EDIT, *_ENDED), {
            "application/json": {"schema": _ref("LegacyEdit")},
            "multipart/form-data": {"schema": _ref("EditForm")},
        }),
    Operation("get", "/health", "How the daemon is, as the predecessor said it.",
        {200: ("Status, model, whether it is loaded.", _ANY)}),
    Operation("post", "/v1/images/edits", "Edit as OpenAI's clients ask for it.",
        {200: ("The pictures, or a stream of events that ends with them.",
               {"application/json": {"schema": _ref("OpenAIImages")}, **_EVENTS})},
        (*_EDIT, *_ENDED, "idempotency_mismatch"), {
            "multipart/form-data": {"schema": _ref("OpenAIEdit")},
            "application/json": {"schema": _ref("Edit")},
        }, (_KEY,)),
    Operation("get", "/v1/models", "The model that edits, as OpenAI's clients list it.",
        {200: ("A list of one.", {"application/json": {"schema": _ref("OpenAIModels")}})}),
    Operation("get", "/v1/models/{id}", "That model by its name.",
        {200: ("The model.", {"application/json": {"schema": _ref("OpenAIModel")}})},
        ("not_found",)),
    Operation("post", "/v1/jobs", "Accept an edit: durable when answered.",
        {202: ("Accepted.", _JOB), 200: ("It has ended already.", {**_JOB, **_PIXELS})},
        (*_EDIT, *_ENDED, "idempotency_mismatch"), _EDIT_BODY, (_WAIT, _KEY)),
    Operation("get", "/v1/jobs", "Jobs, newest first.",
        {200: ("A page.", {"application/json": {"schema": _ref("Jobs")}})},
        ("bad_request",), None, _LISTED),
    Operation("get", "/v1/jobs/{job}", "One job.",
        {200: ("The job.", _JOB)}, ("not_found", "expired"), None, (_WAIT,)),
    Operation("delete", "/v1/jobs/{job}", "Forget an ended job and its pictures.",
        {204: ("Forgotten.", {})}, ("not_found", "not_done")),
    Operation("patch", "/v1/jobs/{job}", "Change a queued job's priority.",
        {200: ("The job.", _JOB)}, ("not_found", *_BODY),
        {"application/json": {"schema": _ref("PriorityPatch")}}),
    Operation("post", "/v1/jobs/{job}/cancel", "End a job; an ended one stays as it is.",
        {200: ("The job.", _JOB)}, ("not_found",)),
    Operation("post", "/v1/jobs/{job}/retry", "A new job with the same request.",
        {202: ("The new job.", _JOB)},
        ("not_found", "expired", "bad_request", "too_many_images", "unknown_lora", "unknown_tier",
         "queue_full", "storage_full", "engine_unavailable")),
    Operation("get", "/v1/jobs/{job}/result", "The first result.",
        {200: ("The picture.", _PIXELS), 206: ("Part of it.", _PIXELS), 304: ("Known.", {})},
        ("not_found", "not_done", "timeout", "bad_request", *_ENDED), None, (*_DERIVED, _WAIT)),
    Operation("get", "/v1/jobs/{job}/result/{n}", "Result n, from 1.",
        {200: ("The picture.", _PIXELS), 206: ("Part of it.", _PIXELS), 304: ("Known.", {})},
        ("not_found", "not_done", "timeout", "bad_request", *_ENDED), None, (*_DERIVED, _WAIT)),
    Operation("get", "/v1/jobs/{job}/inputs/{n}", "Reference picture n, from 1.",
        {200: ("The picture.", _PIXELS), 206: ("Part of it.", _PIXELS), 304: ("Known.", {})},
        ("not_found", "expired"), None, (_ETAG,)),
    Operation("get", "/v1/jobs/{job}/events", "Events of one job; ends with it.",
        {200: ("Server-sent events.", _EVENTS), 204: ("Nothing more will come.", {})},
        ("not_found", "bad_request", "queue_full"), None, _STREAM),
    Operation("get", "/v1/events", "Events of all jobs.",
        {200: ("Server-sent events.", _EVENTS)}, ("bad_request", "queue_full"), None, _STREAM),
    Operation("get", "/v1/jobs/{job}/mask", "The mask, where the job has one.",
        {200: ("The picture.", _PIXELS), 206: ("Part of it.", _PIXELS), 304: ("Known.", {})},
        ("not_found", "expired"), None, (_ETAG,)),
    Operation("get", "/v1/samples/{name}", "A picture to try, of those that capabilities names.",
        {200: ("The picture.", _PIXELS)}, ("not_found",)),
    Operation("post", "/v1/inputs", "Keep a picture for an hour, to be named by its hash.",
        {201: ("Kept.", {"application/json": {"schema": _ref("Input")}})}, _PICTURE,
        {"image/*": {}, "application/octet-stream": {}}),
    Operation("get", "/v1/presets", "Named edit options: shipped, configured, saved.",
        {200: ("All of them.", {"application/json": {"schema": _ref("Presets")}})},
        ("bad_request",)),
    Operation("get", "/v1/presets/{name}", "One preset.",
        {200: ("The preset.", _PRESET)}, ("not_found",)),
    Operation("put", "/v1/presets/{name}", "Save edit options under a name, for every door.",
        {200: ("Replaced.", _PRESET), 201: ("New.", _PRESET)},
        (*_BODY, "bad_size", "unknown_lora", "unknown_tier", "preset_fixed", "presets_full",
         "storage_full", "engine_unavailable"),
        {"application/json": {"schema": _ref("EditOptions")}}),
    Operation("delete", "/v1/presets/{name}", "Forget a saved preset; its jobs do not change.",
        {204: ("Forgotten.", {})},
        ("not_found", "preset_fixed", "storage_full", "engine_unavailable")),
    Operation("post", "/v1/queue/pause", "Start no more jobs, also after a restart.",
        {200: ("Paused; a running job goes on.", _HELD)}, ("engine_unavailable", "storage_full")),
    Operation("post", "/v1/queue/resume", "Start jobs again.",
        {200: ("The queue goes on.", _HELD)}, ("engine_unavailable", "storage_full")),
    Operation("post", "/v1/engine/load", "Load an unloaded engine; try a failed one at once.",
        {202: ("It is loading, or loaded already.", _HELD)}),
    Operation("post", "/v1/engine/unload", "End the engine: the card is free until a job comes.",
        {202: ("It ends, after its edit if it has one.", _HELD)}),
    Operation("get", "/v1/capabilities", "Model, presets, tiers, limits, state.",
        {200: ("What this daemon can do.", _ANY)}),
    Operation("post", "/v1/session", "Trade the key for a cookie, for pages.",
        {204: ("The cookie is set, if a key was needed.", {})}),
    Operation("delete", "/v1/session", "Drop the cookie.", {204: ("Dropped.", {})}),
    Operation("post", "/v1/session/code", "A code that lets another browser in, once.",
        {200: ("The code, and where other machines reach this daemon.",
            {"application/json": {"schema": _ref("Code")}})}),
    Operation("put", "/v1/session/code", "Trade the code in Authorization for a cookie.",
        {204: ("The cookie is set.", {})}),
    Operation("get", "/", "The studio.", {200: ("A page.", {"text/html": {}})}),
    Operation("get", "/docs", "This description, to try out.",
        {200: ("A page.", {"text/html": {}})}),
    Operation("get", "/docs/{page}", "A guide, with this daemon's address in its samples.",
        {200: ("A page.", {"text/html": {}})}, ("not_found",)),
    Operation("get", "/static/{file}", "A file of the pages.",
        {200: ("The file.", {"text/css": {}, "text/javascript": {}, "image/svg+xml": {}}),
         304: ("Known.", {})}, ("not_found",)),
    Operation("get", "/openapi.json", "This description.", {200: ("OpenAPI 3.1.", _ANY)}),
    Operation("get", "/healthz", "Whether the daemon lives.", {200: ("It does.", _ANY)}),
    Operation("get", "/readyz", "Whether edits are being made.",
        {200: ("They are.", _ANY), 503: ("Not now; the body says why.", _ANY)}),
    Operation("get", "/metrics", "The daemon's figures, for Prometheus.",
        {200: ("Text format 0.0.4.", _TEXT)}),
    Operation("get", "/r/{job}/{n}", "One result by its link, without a key.",
        {200: ("The picture.", _PIXELS), 206: ("Part of it.", _PIXELS), 304: ("Known.", {})},
        ("not_found", "not_done", "bad_request", *_ENDED), None, (_query("t", "Token."),)),
)  # fmt: skip
"""Every route. A test compares them with the router."""


def document(version: str) -> Schema:
    """The whole description."""
    paths: dict[str, Schema] = {}
    for operation in OPERATIONS:
        paths.setdefault(operation.path, {})[operation.method] = _operation(operation)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "vellumd",
            "version": version,
            "summary": "Edits pictures by a sentence, one daemon for everyone.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "/"}],
        "paths": paths,
        "components": {
            "schemas": _schemas(),
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{"key": []}, {}],
    }


def codes_of(operation: Operation) -> list[str]:
    """Every error code that the operation can answer with."""
    codes = [c for c in _EVERYWHERE if c != "unauthorized" or operation.path not in _OPEN]
    if operation.method != "get":
        codes += _CHANGES
    return sorted({*codes, *operation.codes})


def status_of(operation: Operation, code: str) -> int:
    """The HTTP status with which the operation tells an error."""
    error = errors.from_code(code, "")
    return openai_wire.status_of(error) if openai_wire.is_path(operation.path) else error.status


def _operation(operation: Operation) -> Schema:
    names = [part[1:-1] for part in operation.path.split("/") if part.startswith("{")]
    inside = [_path_parameter(name) for name in names]
    shown: Schema = {
        "summary": operation.summary,
        "operationId": _operation_id(operation),
        "tags": [_tag(operation.path)],
        "parameters": [*inside, *operation.parameters],
        "responses": {
            **{
                str(status): {"description": text, **({"content": content} if content else {})}
                for status, (text, content) in operation.answers.items()
            },
            **_error_answers(operation),
        },
    }
    if operation.body is not None:
        shown["requestBody"] = {"required": True, "content": operation.body}
    if operation.path in _OPEN:
        shown["security"] = []
    return shown


def _tag(path: str) -> str:
    """The group under which a page shows the route."""
    if openai_wire.is_path(path):
        return "as OpenAI"
    if path in LEGACY_PATHS:
        return "as the predecessor"
    return path.split("/")[2] if path.startswith("/v1/") else "service"


def _operation_id(operation: Operation) -> str:
    words = [word.strip("{}") for word in operation.path.split("/") if word]
    return "_".join([operation.method, *(word.replace(".", "_") for word in words)])


def _path_parameter(name: str) -> Schema:
    schema = {"type": "integer", "minimum": 1} if name == "n" else {"type": "string"}
    return {"name": name, "in": "path", "required": True, "schema": schema}


def _error_answers(operation: Operation) -> Schema:
    """Answers by status; each names its codes and what they mean."""
    grouped: dict[str, list[str]] = {}
    for code in codes_of(operation):
        grouped.setdefault(str(status_of(operation, code)), []).append(code)
    schema, type = _ref("Problem"), "application/problem+json"
    if operation.path in LEGACY_PATHS:
        schema, type = _ref("LegacyError"), "application/json"
    elif openai_wire.is_path(operation.path):
        schema, type = _ref("OpenAIError"), "application/json"
    taken = {str(status) for status in operation.answers}
    return {
        status: {
            "description": " ".join(f"`{code}`: {_meaning(code)}" for code in codes),
            "content": {type: {"schema": schema}},
        }
        for status, codes in sorted(grouped.items())
        if status not in taken
    }


def _meaning(code: str) -> str:
    return (errors.BY_CODE[code].__doc__ or code).partition("\n")[0]


def _schemas() -> Schema:
    _, defined = models_json_schema(
        [
            (Job, "serialization"),
            (JobEvent, "serialization"),
            (EditRequest, "validation"),
            (PriorityPatch, "validation"),
            (models.EditOptions, "validation"),
        ],
        ref_template="#/components/schemas/{model}",
    )
    schemas: Schema = dict(defined["$defs"])
    edit = schemas.pop("EditRequest")["properties"]
    schemas["Edit"] = _edit_schema(edit)
    schemas["LegacyEdit"] = _edit_schema(
        edit, width={"type": "integer"}, height={"type": "integer"}
    )
    schemas["EditForm"] = _form_schema(edit)
    schemas["OpenAIEdit"] = _openai_schema(edit)
    schemas.update(_ANSWERS)
    return schemas


_TEXT_PICTURE = {"type": "string", "description": "base64, a data: URI, or sha256:HASH."}


def _edit_schema(properties: Schema, **more: Schema) -> Schema:
    pictures = {"type": "array", "items": _TEXT_PICTURE, "minItems": 1}
    shown = {**properties, "images": pictures, "mask": _TEXT_PICTURE, **more}
    return {"type": "object", "properties": shown, "required": ["images", "prompt"]}


def _form_schema(properties: Schema) -> Schema:
    """Forms carry texts: `loras`, `output` and `meta` as JSON."""
    file = {"type": "string", "format": "binary"}
    texts = {name: {"type": "string"} for name in properties}
    shown = {**texts, "images": {"type": "array", "items": file}, "mask": file}
    return {"type": "object", "properties": shown, "required": ["images", "prompt"]}


def _openai_schema(properties: Schema) -> Schema:
    """Their form, with an edit's own options besides; several pictures come as `image[]`."""
    file: Schema = {"type": "string", "format": "binary"}
    texts: Schema = {name: {"type": "string"} for name in properties if name != "images"}
    shown: Schema = {
        **texts,
        "image": file,
        "image[]": {"type": "array", "items": file},
        "mask": {**file, "description": "The picture may change where it is transparent."},
        "model": {"type": "string", "description": "Any; the one here edits."},
        "quality": {"type": "string", "enum": sorted(openai_wire.QUALITIES)},
        "size": {"type": "string", "description": "auto (as image 1) or WIDTHxHEIGHT."},
        "output_format": {"type": "string", "enum": ["png", "jpeg", "webp"]},
        "output_compression": {"type": "integer", "minimum": 0, "maximum": 100},
        "background": {"type": "string", "enum": sorted(openai_wire.BACKGROUNDS)},
        "response_format": {"type": "string", "enum": ["b64_json", "url"]},
        "stream": {"type": "boolean"},
        "partial_images": {"type": "integer", "minimum": 0, "maximum": openai_wire.PARTIALS_MAX},
        "user": {"type": "string", "description": "Whose job it is: `client_id` elsewhere."},
    }
    return {"type": "object", "properties": shown, "required": ["prompt"]}


def _object(required: Iterable[str], **properties: Schema) -> Schema:
    return {"type": "object", "properties": properties, "required": list(required)}


_STRING, _INTEGER, _BOOLEAN = {"type": "string"}, {"type": "integer"}, {"type": "boolean"}
_CODE = {"type": "string", "enum": sorted(errors.BY_CODE)}

_ANSWERS: Schema = {
    "Problem": _object(
        ("type", "title", "status", "detail", "code", "retryable"),
        type=_STRING, title=_STRING, status=_INTEGER, detail=_STRING, code=_CODE,
        retryable=_BOOLEAN,
    ),
    "Control": _object(
        ("queue", "engine"),
        queue=_object(
            ("queued", "running", "held"), queued=_INTEGER, running=_INTEGER,
            held={"type": "string", "enum": ["", "paused", "storage_full", "stopping"]},
        ),
        engine={"type": "object", "description": "As in /v1/capabilities."},
    ),
    "Preset": _object(
        ("name", "origin", "usable", "options"),
        name=_STRING,
        usable={"type": "boolean", "description": "Whether its LoRAs are here."},
        origin={"type": "string", "enum": ["shipped", "configuration", "saved"]},
        options=_ref("EditOptions"),
    ),
    "Presets": _object(
        ("presets", "default"),
        presets={"type": "array", "items": _ref("Preset")},
        default={"type": "string", "description": "The one of requests that name none."},
    ),
    "OpenAIModel": _object(
        ("id", "object", "created", "owned_by"),
        id=_STRING, object={"const": "model"}, created=_INTEGER, owned_by=_STRING,
    ),
    "OpenAIModels": _object(
        ("object", "data"),
        object={"const": "list"}, data={"type": "array", "items": _ref("OpenAIModel")},
    ),
    "OpenAIImages": _object(
        ("created", "data", "usage", "job_id", "model", "warnings"),
        created=_INTEGER,
        data={
            "type": "array",
            "items": _object(("seed",), b64_json=_STRING, url=_STRING, seed=_INTEGER),
        },
        background=_STRING, output_format=_STRING, quality=_STRING, size=_STRING,
        usage={"type": "object", "description": "Tokens: none are used here."},
        job_id=_STRING, model=_STRING, warnings={"type": "array", "items": _ref("Notice")},
    ),
    "OpenAIError": _object(
        ("error",),
        error=_object(
            ("message", "type", "param", "code"),
            message=_STRING, type=_STRING, param={"type": ["string", "null"]}, code=_CODE,
        ),
    ),
    "LegacyError": _object(("detail", "code"), detail=_STRING, code=_CODE),
    "Input": _object(
        ("sha256", "width", "height"), sha256=_STRING, width=_INTEGER, height=_INTEGER
    ),
    "Code": _object(
        ("code", "expires_s", "address"),
        code={"type": ["string", "null"], "description": "Null where no key is needed."},
        expires_s={"type": ["integer", "null"]},
        address={"type": ["string", "null"], "description": "URL; null: this machine alone."},
    ),
    "Jobs": _object(
        ("jobs", "next"),
        jobs={"type": "array", "items": _ref("Job")},
        next={"type": ["string", "null"]},
    ),
    "Generated": _object(
        ("image", "seed", "width", "height", "elapsed", "job_id", "model", "warnings"),
        image={"type": "string", "description": "base64 of the first picture."},
        images={"type": "array", "items": _STRING, "description": "All, where there are several."},
        seed=_INTEGER, width=_INTEGER, height=_INTEGER, elapsed={"type": ["number", "null"]},
        job_id=_STRING, model=_STRING, warnings={"type": "array", "items": _ref("Notice")},
    ),
}  # fmt: skip
