"""The hot folder as a plugin: its settings and its one hook."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, ConfigDict, Field

from vellumd import TransportSpec, hookimpl
from vellumd_hotfolder.checks import check_roots

if TYPE_CHECKING:
    from vellumd import Transport, TransportContext

GIVE_UP_S = 30 * 86_400.0
"""Seconds for which results wait for a disk that is away: a month's holiday."""
MAIN = "main"
"""Name of the folder that has none: what `root` itself names."""


class FolderSettings(BaseModel):
    """One hot folder."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    root: Path | None = Field(
        None,
        description="Folder that holds inbox, outbox, done and failed; they are made where they "
        "are missing. `python -m vellumd_hotfolder init DIR` makes one with a README.txt.",
    )
    preset: str | None = Field(None, description="Preset of pictures whose folder names none.")
    prompt: str | None = Field(
        None, description="Prompt of pictures that come without one; unset, they wait for theirs."
    )
    priority: int = Field(
        0, ge=-100, le=100, description="Higher runs first; other doors' jobs have 0."
    )
    settle_s: float | None = Field(
        None,
        ge=0,
        le=3600,
        description="Seconds without a change after which a file counts as written; unset, 2, "
        "and 5 where the folder is polled: shares tell of changes late.",
    )
    scan_s: float | None = Field(
        None,
        gt=0,
        le=3600,
        description="Seconds from one look at all files to the next; unset, 10, and 5 where the "
        "folder is polled. Where the system tells of changes, they are looked at at once.",
    )
    incomplete_s: float = Field(
        60,
        ge=0,
        le=86_400,
        description="Seconds a settled picture that is not whole gets to become so; then it is "
        "moved to failed.",
    )
    require_ready: bool = Field(
        False, description="Whether a sub-folder waits until a file _ready lies in it."
    )
    watch: Literal["auto", "native", "poll"] = Field(
        "auto",
        description="How changes are noticed: native asks the system, poll only looks every "
        "scan_s, auto polls network shares, which tell of nothing that others write.",
    )
    duplicates: Literal["run", "skip"] = Field(
        "run",
        description="What happens to a picture that was edited before in the same way: run edits "
        "it again, skip moves it to done.",
    )
    done: Literal["keep", "delete"] = Field(
        "keep", description="Whether edited originals are moved to done or deleted."
    )


class HotfolderSettings(FolderSettings):
    """Takes pictures that are dropped into a folder and puts the edits beside them."""

    folders: dict[str, FolderSettings] = Field(
        default_factory=dict,
        description="Further hot folders by name, each with the keys above, e.g. "
        "[plugins.hotfolder.folders.shop] with root = '/srv/shop'.",
    )

    def roots(self) -> dict[str, FolderSettings]:
        """All folders that have a root, by name; the one without a name is `main`."""
        named = {MAIN: self, **self.folders}
        return {name: folder for name, folder in named.items() if folder.root is not None}


def open_transport(context: TransportContext) -> Transport:
    """The door, made when the daemon starts it; only then are watchdog and Pillow loaded."""
    from vellumd_hotfolder.transport import HotfolderTransport

    return HotfolderTransport(context)


@hookimpl
def vellumd_transports() -> Iterable[TransportSpec]:
    """One transport, `hotfolder`."""
    return [
        TransportSpec(
            "hotfolder",
            HotfolderSettings,
            open_transport,
            checks=(check_roots,),
            give_up_s=GIVE_UP_S,
        )
    ]
