"""What a target is told and how it is signed: Standard Webhooks (standardwebhooks.com, v1)."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from vellumd import Job

PREFIX = "whsec_"
KEY_BYTES = range(24, 65)
"""How long a key may be."""


@dataclass(frozen=True)
class Message:
    """What is told; a repetition has the same `id` and the same bytes."""

    id: str
    body: bytes


def key_of(secret: str) -> bytes:
    """The key that a secret stands for; raises `ValueError`, which does not tell it."""
    try:
        key = base64.b64decode(secret.removeprefix(PREFIX), validate=True)
    except (binascii.Error, ValueError):
        key = b""
    if not secret.startswith(PREFIX) or len(key) not in KEY_BYTES:
        raise ValueError(
            "must be whsec_ and 24 to 64 bytes in base64; "
            'make one by: echo "whsec_$(openssl rand -base64 32)"'
        )
    return key


def of_job(job: Job, link: Callable[[str, int], str | None]) -> Message:
    """The end of a job; where results have an address, `link` tells it.

    The job's id is the message's: a job ends once.
    """
    shown = job.public()
    for result in shown["results"]:
        if url := link(job.id, result["n"]):
            result["url"] = url
    return message(job.id, f"job.{job.status}", shown["ended"], shown)


def ping(id: str, now: datetime, version: str) -> Message:
    """What tells nothing but that messages arrive."""
    return message(id, "ping", now.isoformat(timespec="milliseconds"), {"version": version})


def message(id: str, type: str, timestamp: str, data: dict[str, Any]) -> Message:
    """A message in Standard Webhooks' recommended shape."""
    told = {"type": type, "timestamp": timestamp, "data": data}
    return Message(id, json.dumps(told, ensure_ascii=False, separators=(",", ":")).encode())


def headers(message: Message, secret: str, now: int) -> dict[str, str]:
    """The headers of an attempt made at the Unix time `now` in seconds."""
    signed = f"{message.id}.{now}.".encode() + message.body
    digest = hmac.new(key_of(secret), signed, hashlib.sha256).digest()
    return {
        "Content-Type": "application/json",
        "webhook-id": message.id,
        "webhook-timestamp": str(now),
        "webhook-signature": f"v1,{base64.b64encode(digest).decode()}",
    }
