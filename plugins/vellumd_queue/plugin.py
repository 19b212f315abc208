"""The queue door as a plugin: its settings and its one hook."""

from __future__ import annotations

import re
import socket
from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, SecretStr, model_validator

from vellumd import TransportSpec, hookimpl
from vellumd_queue.checks import check_servers
from vellumd_queue.names import ANSWER, SPELLINGS

if TYPE_CHECKING:
    from vellumd import Transport, TransportContext

ONLY = "main"
"""Name of the server where only `url` is set."""
GIVE_UP_S = 24 * 3600.0
"""Seconds for which a result is offered to its server."""


def _base_url(url: str) -> str:
    if re.search(r"[\s\\\x00-\x1f\x7f]", url):
        raise ValueError("must hold no space, no line break and no backslash")
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("must begin with http:// or https:// and name a server")
    if parts.username or parts.query or parts.fragment:
        raise ValueError("must hold no user, no ? and no #; a token belongs into token_file")
    if parts.port == 0:  # a larger one than there is raises ValueError by itself
        raise ValueError("must name a port from 1 to 65535, or none")
    return url.rstrip("/")


def _call(call: str) -> str:
    method, _, path = call.partition(" ")
    if method not in ("GET", "POST", "PUT", "PATCH") or not path.startswith("/"):
        raise ValueError('must be a method and a path, such as "POST /api/queue/result"')
    return call


def _fields(names: dict[str, str]) -> dict[str, str]:
    for name in names:
        if name not in SPELLINGS and name != "id":
            raise ValueError(f"{name} is no field of an edit")
    return names


def _answer(names: dict[str, str]) -> dict[str, str]:
    for name in names:
        if name not in ANSWER:
            raise ValueError(f"{name} is not one of {', '.join(ANSWER)}")
    return names


Url = Annotated[str, AfterValidator(_base_url)]
Call = Annotated[str, AfterValidator(_call)]


class Section(BaseModel):
    """Immutable; an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class MapSettings(Section):
    """How the server's paths and names differ from the usual ones."""

    next: Call = Field("GET /api/queue/next", description="Method and path that give a job.")
    result: Call = Field(
        "POST /api/queue/result",
        description="Method and path that take a result; {id} stands for the job's id.",
    )
    heartbeat: Call = Field(
        "POST /api/queue/heartbeat", description="Method and path that take a sign of life."
    )
    job: str = Field(
        "", description="Where in the answer the job is, e.g. data.job or 0; empty: all of it."
    )
    fields: Annotated[dict[str, str], AfterValidator(_fields)] = Field(
        {},
        description="Where in the job a field of ours is, e.g. prompt = 'params.text'. "
        "Fields of the usual names need none.",
    )
    answer: Annotated[dict[str, str], AfterValidator(_answer)] = Field(
        {},
        description="What a result's names are called, e.g. image = 'output.png', for any of "
        f"{', '.join(ANSWER)}, of which done and failed are words for status. An empty text "
        "leaves a name out.",
    )


class Worker(Section):
    """What can be said of each server."""

    url: Url | None = Field(
        None, description="The server's address, without the path of the queue."
    )
    token: SecretStr | None = Field(
        None,
        description="Sent as `Authorization: Bearer`; better as token_file, the name of a file "
        "whose first line it is.",
    )
    worker: str = Field(
        default_factory=socket.gethostname,
        max_length=128,
        description="Name told to the server as ?worker=; unset, this machine's.",
    )
    map: MapSettings = MapSettings()
    result: Literal["json", "multipart"] = Field(
        "json", description="How results are posted: base64 in JSON, or a form with a file."
    )
    heartbeat: float | None = Field(
        None,
        ge=1,
        description="Seconds between two signs of life, JSON of id and worker, for each job that "
        "is not answered yet; for servers that lease jobs. The first comes when a job is taken; "
        "unset, none does.",
    )


class ServerSettings(Worker):
    """One server."""

    url: Url


class QueueSettings(Worker):
    """Pulls jobs from queue servers: from `url`, or from several `servers`."""

    servers: dict[str, ServerSettings] = Field(
        {},
        description="Several servers by name instead of url, each with the keys above, e.g. "
        "[plugins.queue.servers.shop] with url = 'http://queue.lan:8000'.",
    )

    @model_validator(mode="after")
    def _one_way(self) -> QueueSettings:
        if bool(self.url) == bool(self.servers):
            raise ValueError("set either url or servers.NAME.url")
        return self

    def named(self) -> dict[str, ServerSettings]:
        """The servers by name."""
        if self.servers:
            return self.servers
        return {ONLY: ServerSettings(**{key: getattr(self, key) for key in Worker.model_fields})}


def open_transport(context: TransportContext) -> Transport:
    """The door, made when the daemon starts it; only then is aiohttp loaded."""
    from vellumd_queue.transport import QueueTransport

    return QueueTransport(context)


@hookimpl
def vellumd_transports() -> Iterable[TransportSpec]:
    """One transport, `queue`."""
    checks = (check_servers,)
    return [TransportSpec("queue", QueueSettings, open_transport, checks, give_up_s=GIVE_UP_S)]
