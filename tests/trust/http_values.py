"""Hooks for Schemathesis: values with which random requests reach more than the first check.

It is loaded by name (`SCHEMATHESIS_HOOKS`) into the process that sends. Jobs and the picture
come from the environment. What is chosen depends on what was generated alone, so that a seed
repeats a run.
"""

from __future__ import annotations

import base64
import json
import os
import zlib
from typing import Any

import schemathesis

JOBS: list[str] = json.loads(os.environ.get("VALUES_JOBS", "[]"))
PICTURE = base64.b64decode(os.environ.get("VALUES_PICTURE", ""))
WORDS = {
    "source": "http", "status": "done", "format": "jpeg", "preview": "1", "size": "match",
    "preset": "fastest", "tier": "standard", "output": {"format": "webp"}, "loras": [],
}  # fmt: skip
"""Values of fields that random ones hardly meet."""


def chance(value: Any) -> int:
    """0 to 9, the same for the same value."""
    return zlib.crc32(repr(value).encode()) % 10


@schemathesis.hook
def map_path_parameters(context: Any, path_parameters: dict[str, Any] | None) -> Any:
    """Mostly a job that there is, or was; of streams one that has ended, since others last."""
    if path_parameters and "job" in path_parameters and JOBS:
        number = chance(path_parameters)
        ended = context.operation.path.endswith("/events")
        if ended or number < 8:
            path_parameters["job"] = JOBS[0] if ended else JOBS[number % len(JOBS)]
    return path_parameters


@schemathesis.hook
def map_query(context: Any, query: dict[str, Any] | None) -> Any:
    """Now and then words that mean something."""
    return {name: _word(name, value) for name, value in query.items()} if query else query


@schemathesis.hook
def map_body(context: Any, body: Any) -> Any:
    """Mostly a picture where pictures belong, and words that mean something."""
    if not isinstance(body, dict):
        return PICTURE if isinstance(body, bytes) and chance(body) < 5 else body
    shown = {name: _word(name, value) for name, value in body.items()}
    for name in ("images", "image"):
        if name in shown and chance(body) < 8:
            shown[name] = _pictures(shown[name])
    return shown


def _word(name: str, value: Any) -> Any:
    return WORDS[name] if name in WORDS and chance(value) < 5 else value


def _pictures(value: Any) -> Any:
    """The picture in the shape that was generated."""
    many = value if isinstance(value, list) else [value]
    binary = any(isinstance(one, bytes) for one in many)
    picture = PICTURE if binary else base64.b64encode(PICTURE).decode()
    return [picture] * min(len(many) or 1, 4) if isinstance(value, list) else picture
