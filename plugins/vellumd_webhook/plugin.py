"""The webhook door as a plugin: its settings and its one hook."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, SecretStr, model_validator

from vellumd import Check, TransportSpec, hookimpl
from vellumd_webhook.wire import key_of

if TYPE_CHECKING:
    from vellumd import Transport, TransportContext

GIVE_UP_S = 24 * 3600.0
"""Seconds for which a target is tried after a job's end."""
LOOPBACK = re.compile(r"localhost|127(\.\d{1,3}){3}|\[::1\]", re.IGNORECASE)
URL = re.compile(
    r"(?P<scheme>https?)://(?P<host>[a-z0-9.-]+|\[[0-9a-f:]+\])(:(?P<port>\d{1,5}))?"
    r"([/?][!\"$-\[\]-~]*)?",
    re.IGNORECASE,
)
"""So strict that no two parsers can read it in two ways: no user, no # and no backslash."""


def _url(url: str) -> str:
    found = URL.fullmatch(url)
    if not found or not 0 < int(found["port"] or 1) < 65536:
        raise ValueError(
            "must be https://HOST/PATH in ASCII, without user and #; a name is written with "
            "letters, digits, - and ."
        )
    return url


def _secret(secret: SecretStr) -> SecretStr:
    key_of(secret.get_secret_value())
    return secret


class Section(BaseModel):
    """Immutable; an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class TargetSettings(Section):
    """One address that is told, and of what."""

    url: Annotated[str, AfterValidator(_url)] = Field(
        repr=False, description="Where messages are posted to: https, on this machine also http."
    )
    secret: Annotated[SecretStr, AfterValidator(_secret)] = Field(
        description="What messages are signed with: whsec_ and 24 to 64 bytes in base64. Better "
        "as secret_file, the name of a file whose first line it is."
    )
    sources: tuple[str, ...] = Field(
        (), description="Doors of whose jobs the target is told; empty: of all."
    )
    ca: Path | None = Field(
        None, description="Certificates (PEM) that sign the target's; unset, the system's."
    )
    allow_plaintext: bool = Field(
        False, description="Whether http may leave this machine, where anybody can read along."
    )

    @model_validator(mode="after")
    def _encrypted(self) -> TargetSettings:
        if not (self.scheme == "https" or self.loopback or self.allow_plaintext):
            raise ValueError("url: must begin with https://; allow_plaintext = true allows http")
        return self

    @property
    def scheme(self) -> str:
        """`http` or `https`."""
        return self._part("scheme").lower()

    @property
    def host(self) -> str:
        """Name or address, without brackets: all of the URL that is ever shown."""
        return self._part("host").strip("[]").lower()

    @property
    def port(self) -> int:
        """The TCP port."""
        return int(self._part("port") or (443 if self.scheme == "https" else 80))

    @property
    def loopback(self) -> bool:
        """Whether the URL says that the target is on this machine."""
        return bool(LOOPBACK.fullmatch(self._part("host")))

    def _part(self, name: str) -> str:
        found = URL.fullmatch(self.url)
        assert found is not None
        return found[name] or ""


class WebhookSettings(Section):
    """Tells other services, by signed webhooks, how jobs of all doors have ended."""

    targets: dict[str, TargetSettings] = Field(
        {},
        description="Who is told, by name, e.g. [plugins.webhook.targets.shop] with url = "
        "'https://shop.example.org/hooks/pictures' and secret_file = 'shop-secret.txt'.",
    )
    ping: bool = Field(
        False,
        description="Whether `vellumd doctor` sends each target a signed message of type ping; "
        "else it only looks whether they take connections.",
    )

    @model_validator(mode="after")
    def _some(self) -> WebhookSettings:
        if not self.targets:
            raise ValueError("set targets.NAME.url and targets.NAME.secret_file")
        return self


def open_transport(context: TransportContext) -> Transport:
    """The door, made when the daemon starts it; only then is aiohttp loaded."""
    from vellumd_webhook.transport import WebhookTransport

    return WebhookTransport(context)


async def check_targets(settings: WebhookSettings) -> Iterable[Check]:
    """What doctor says of the targets: see `checks`."""
    from vellumd_webhook import checks

    return await checks.targets(settings)


@hookimpl
def vellumd_transports() -> Iterable[TransportSpec]:
    """One transport, `webhook`."""
    checks = (check_targets,)
    return [TransportSpec("webhook", WebhookSettings, open_transport, checks, give_up_s=GIVE_UP_S)]
