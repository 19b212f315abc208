"""`python -m vellumd_queue explain FILE`: how a saved answer of a queue server is read."""

from __future__ import annotations

import argparse
import json
import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from vellumd import EditRequest, ImageRef, errors
from vellumd_queue import mapping
from vellumd_queue.mapping import GarbageError
from vellumd_queue.plugin import Worker

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
        server = read_server(args.config, args.server)
        for line in explain(args.file.read_bytes(), server):
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


def read_server(config: Path | None, name: str | None) -> Worker:
    """What a configuration says of a server; the usual names without one."""
    if config is None:
        return Worker()
    path = f"plugins.queue.servers.{name}" if name else "plugins.queue"
    section = mapping.dig(tomllib.loads(config.read_text("utf-8-sig")), path)
    if not isinstance(section, dict):
        raise ValueError(f"{config.name} has no section [{path}]")
    if servers := section.get("servers"):
        raise ValueError(f"{config.name} has several servers: add --server {' or '.join(servers)}")
    try:
        return Worker.model_validate({k: v for k, v in section.items() if k in ("url", "map")})
    except ValidationError as error:
        problem = error.errors()[0]
        key = ".".join(map(str, (path, *problem["loc"])))
        raise ValueError(f"{key}: {problem['msg']}") from None


def explain(body: bytes, server: Worker) -> Iterator[str]:
    """What the door makes of an answer, line by line; raises as the door's functions do."""
    names = server.map
    job = mapping.find_job(body, names)
    if job is None:
        yield "the queue is empty"
        return
    order = mapping.read_order(job, names)
    yield f"job      id {json.dumps(order.id)}"
    for number, picture in enumerate(order.pictures, start=1):
        yield f"image {number}  {_picture(picture, server.url)}"
    for name, value in order.fields.items():
        yield f"{name:8} {_short(value)}"
    if order.ignored:
        yield f"ignored  {', '.join(order.ignored)}"
    _check(order)
    call = mapping.with_id(names.result, order.id)
    body, _ = mapping.as_json(names, mapping.done(names, order.id, [b"..."], 42, 1.5))
    yield f"result   {call} {body.decode()}"
    body, _ = mapping.as_json(names, mapping.failed(names, order.id, "bad_image", "..."))
    yield f"failure  {call} {body.decode()}"


def _check(order: mapping.Order) -> None:
    """Raise what the daemon would, as far as that can be told without the pictures."""
    if not order.pictures:
        raise errors.TooManyImages("The job has no picture.")
    stand_in = ImageRef(sha256="0" * 64, width=1, height=1)
    EditRequest.parse(mapping.request_of(order, [stand_in], None))


def _picture(picture: str, url: str | None) -> str:
    """How a picture comes; `url` is its server's, where that is known."""
    whole = re.match("https?://[^/]*", picture, re.IGNORECASE)
    if mapping.picture_url(picture, url or (whole[0] if whole else "http://localhost")):
        return f"by URL: {_short(picture)}"
    return f"{len(mapping.decode_picture(picture))} bytes"


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}... ({len(text)} characters)"


if __name__ == "__main__":
    sys.exit(main())
