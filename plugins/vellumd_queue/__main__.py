"""`python -m vellumd_queue explain FILE`: how a saved answer of a queue server is read."""

from __future__ import annotations

import argparse
import json
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from vellumd import EditRequest, ImageRef, errors
from vellumd_queue import mapping
from vellumd_queue.mapping import GarbageError
from vellumd_queue.plugin import MapSettings

UNREADABLE = 1
SHOWN = 60
"""Characters of a value that are shown."""


def parser() -> argparse.ArgumentParser:
    """The commands."""
    commands = argparse.ArgumentParser(prog="python -m vellumd_queue", description=__doc__)
    which = commands.add_subparsers(dest="command", required=True)
    explain = which.add_parser("explain", help="how a saved answer is read, and what is sent back")
    explain.add_argument("file", type=Path, help="what the server answered, e.g. saved by curl")
    explain.add_argument("--config", type=Path, help="TOML file with [plugins.queue.map]")
    explain.add_argument("--server", help="which of plugins.queue.servers")
    return commands


def main(words: list[str] | None = None) -> int:
    """Explain; 1 if the answer cannot be a job."""
    args = parser().parse_args(words)
    try:
        names = read_map(args.config, args.server)
        for line in explain(args.file.read_bytes(), names):
            print(line.encode("ascii", "backslashreplace").decode())
    except (OSError, ValueError) as error:
        print(f"cannot be read: {error}")
        return UNREADABLE
    except GarbageError as garbage:
        print(f"no job: the server {garbage}")
        return UNREADABLE
    except errors.VellumError as refusal:
        shown = refusal.public()
        print(f"refused: {shown['code']}: {shown['message']}")
        return UNREADABLE
    return 0


def read_map(config: Path | None, server: str | None) -> MapSettings:
    """The mapping that a configuration has; the usual names without one."""
    section: Any = {}
    if config:
        section = tomllib.loads(config.read_text("utf-8")).get("plugins", {}).get("queue", {})
        section = section.get("servers", {}).get(server, {}) if server else section
    try:
        return MapSettings.model_validate(section.get("map", {}))
    except ValidationError as error:
        raise ValueError(f"map: {error.errors()[0]['msg']}") from None


def explain(body: bytes, names: MapSettings) -> Iterator[str]:
    """What the door makes of an answer, line by line; raises as the door's functions do."""
    job = mapping.find_job(body, names)
    if job is None:
        yield "the queue is empty"
        return
    order = mapping.read_order(job, names)
    yield f"job      id {json.dumps(order.id)}"
    for number, picture in enumerate(order.pictures, start=1):
        yield f"image {number}  {_picture(picture)}"
    for name, value in order.fields.items():
        yield f"{name:8} {_short(value)}"
    if order.ignored:
        yield f"ignored  {', '.join(order.ignored)}"
    _check(order)
    body, _ = mapping.as_json(names, mapping.done(names, order.id, [b"..."], 42, 1.5))
    yield f"result   {names.result.replace('{id}', str(order.id))} {body.decode()}"
    body, _ = mapping.as_json(names, mapping.failed(names, order.id, "bad_image", "..."))
    yield f"failure  {names.result.replace('{id}', str(order.id))} {body.decode()}"


def _check(order: mapping.Order) -> None:
    """Raise what the daemon would, as far as that can be told without the pictures."""
    if not order.pictures:
        raise errors.TooManyImages("The job has no picture.")
    stand_in = ImageRef(sha256="0" * 64, width=1, height=1)
    EditRequest.parse(mapping.request_of(order, [stand_in], None))


def _picture(picture: str) -> str:
    if picture.startswith(("http://", "https://")) or mapping.picture_url(picture, "http://x"):
        return f"by URL: {_short(picture)}"
    return f"{len(mapping.decode_picture(picture))} bytes"


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}... ({len(text)} characters)"


if __name__ == "__main__":
    sys.exit(main())
