"""The small files of a job's folder that tell its story.

    request.json    what was asked, and all that the job's row says of it
    result.json     what a finished edit left: written last, after every result
    end.json        how the job ended, where it ended without result

Each function reads one of them, and gives None for one that is missing or not whole.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, JsonValue, ValidationError

from vellumd.models import Frozen, JobEvent, Notice, ResolvedEdit, Result, UsedLora

REQUEST, RESULT, END = "request.json", "result.json", "end.json"


class RequestFile(Frozen):
    """`request.json`: `created` is in milliseconds since the epoch; replies are private."""

    id: str
    source: str
    digest: str
    created: int
    key: str | None = None
    retry_of: str | None = None
    reply: JsonValue = None
    followers: tuple[tuple[str, JsonValue], ...] = ()
    lane: int = 0
    warnings: tuple[Notice, ...] = ()
    request: dict[str, Any]
    resolved: ResolvedEdit


class ResultFile(Frozen):
    """`result.json`: what a finished edit left."""

    results: tuple[Result, ...]
    elapsed_s: float
    timings: dict[str, float] = {}
    warnings: tuple[Notice, ...] = ()
    loras: tuple[UsedLora, ...] = ()


Model = TypeVar("Model", bound=BaseModel)


def _read(file: Path, model: type[Model]) -> Model | None:
    try:
        return model.model_validate_json(file.read_bytes())
    except (OSError, ValidationError):
        return None


def has_request(folder: Path) -> bool:
    """Whether something was asked, be it readable or not."""
    return (folder / REQUEST).exists()


def request(folder: Path) -> RequestFile | None:
    """What was asked; None if the job was never accepted."""
    return _read(folder / REQUEST, RequestFile)


def result(folder: Path) -> ResultFile | None:
    """What a finished edit left."""
    found = _read(folder / RESULT, ResultFile)
    return found if found and found.results else None


def result_at(folder: Path) -> int:
    """When the edit was finished, in milliseconds since the epoch."""
    return (folder / RESULT).stat().st_mtime_ns // 1_000_000


def end(folder: Path) -> JobEvent | None:
    """The event with which the job ended without result."""
    found = _read(folder / END, JobEvent)
    return found if found and found.type in ("failed", "cancelled") else None


def note_end(folder: Path, event: JobEvent) -> None:
    """Write `end.json`, as a note only: the row is what counts, so nothing waits for the disk."""
    with contextlib.suppress(OSError):
        (folder / END).write_text(event.model_dump_json(), "utf-8")
