"""The HTTP door as a plugin: its settings and its one hook."""

from __future__ import annotations

import re
from collections.abc import Iterable
from ipaddress import IPv4Network, IPv6Network, ip_network
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from vellumd import TransportSpec, hookimpl
from vellumd_http.checks import check_key, check_port, check_tls

if TYPE_CHECKING:
    from vellumd import Transport, TransportContext

_HOST = re.compile(r"[A-Za-z0-9_.-]+|\[?[0-9A-Fa-f:.]+\]?")
_ORIGIN = re.compile(r"https?://[^/?#@\s]+/?", re.IGNORECASE)
"""Never `null`, which any sandboxed page and local file has."""


class HttpSettings(BaseModel):
    """Edits over HTTP: the studio, the API and OpenAI's dialect of it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    enabled: bool = Field(True, description="Whether vellumd answers over HTTP.")
    host: str = Field(
        "127.0.0.1",
        min_length=1,
        description="Address to listen on; the default also takes ::1 where the machine has "
        "IPv6. Only this machine reaches it; for others 0.0.0.0, which makes a key.",
    )
    port: int = Field(8200, ge=0, le=65535, description="TCP port; 0 lets the system choose.")
    allowed_hosts: tuple[str, ...] = Field(
        (),
        description="Further names this daemon answers for, e.g. a reverse proxy's. Addresses, "
        "localhost and this machine's own names always count; others could be a rebinding attack.",
    )
    allowed_origins: tuple[str, ...] = Field(
        (),
        description="Origins (scheme://host[:port]) whose pages may start and change jobs, "
        "besides this daemon's own.",
    )
    trusted_networks: tuple[IPv4Network | IPv6Network, ...] = Field(
        (),
        description="Networks (CIDR) whose machines need no key. Empty, since anyone there "
        "could see and change every job.",
    )
    api_key_file: Path | None = Field(
        None,
        description="File whose first line is the key that clients send. Without one a "
        "loopback address needs none, any other makes one at the first start. "
        "`vellumd keys add NAME` makes further ones.",
    )
    tls_cert: Path | None = Field(
        None,
        description="PEM file of the certificate and its chain; with tls_key the door speaks "
        "HTTPS only.",
    )
    tls_key: Path | None = Field(
        None, description="PEM file of the certificate's key, without a passphrase."
    )
    max_body_mb: int = Field(
        128,
        ge=1,
        le=4096,
        description="Largest multipart or raw upload in MiB; it streams to disk. "
        "JSON ends at 32 MiB.",
    )
    legacy_size: Literal["match", "auto"] = Field(
        "match",
        description="Result size on POST /generate without width and height: match keeps "
        "the input's, auto makes about one megapixel as the predecessor did.",
    )

    @field_validator("allowed_hosts")
    @classmethod
    def _names(cls, hosts: tuple[str, ...]) -> tuple[str, ...]:
        for host in hosts:
            if not _HOST.fullmatch(host):
                raise ValueError(f"{host[:80]!r} is no host: write a name without scheme or port")
        return hosts

    @field_validator("trusted_networks", mode="before")
    @classmethod
    def _networks(cls, networks: Any) -> Any:
        return [*map(_network, networks)] if isinstance(networks, list | tuple) else networks

    @field_validator("allowed_origins")
    @classmethod
    def _origins(cls, origins: tuple[str, ...]) -> tuple[str, ...]:
        for origin in origins:
            if not _ORIGIN.fullmatch(origin):
                raise ValueError(f"{origin[:80]!r} is no origin: write scheme://host[:port]")
        return origins

    @model_validator(mode="after")
    def _whole_tls(self) -> HttpSettings:
        if (self.tls_cert is None) != (self.tls_key is None):
            raise ValueError("tls_cert and tls_key: set both, or neither")
        return self


def _network(text: Any) -> Any:
    try:
        return ip_network(text)
    except ValueError:
        shown = repr(text)[:80]
        raise ValueError(f"{shown} is no network: write it as in 192.168.1.0/24") from None


def open_transport(context: TransportContext) -> Transport:
    """The door, made when the daemon starts it; only then is aiohttp loaded."""
    from vellumd_http.transport import HttpTransport

    return HttpTransport(context)


@hookimpl
def vellumd_transports() -> Iterable[TransportSpec]:
    """One transport, `http`."""
    return [
        TransportSpec(
            "http", HttpSettings, open_transport, checks=(check_key, check_port, check_tls)
        )
    ]
