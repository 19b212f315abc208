"""The door: all hot folders of one daemon."""

from __future__ import annotations

import asyncio
import uuid
from pathlib import Path
from typing import TYPE_CHECKING

from vellumd import platform
from vellumd_hotfolder import root
from vellumd_hotfolder.folder import HotFolder
from vellumd_hotfolder.site import Site

if TYPE_CHECKING:
    from vellumd import TransportContext
    from vellumd_hotfolder.plugin import HotfolderSettings

UNKNOWN_S = 60.0
"""Seconds until a result is offered again whose folder the settings no longer name."""


class HotfolderTransport:
    """Keeps every folder at work, and hands each the ended jobs that came from it."""

    def __init__(self, context: TransportContext) -> None:
        settings: HotfolderSettings = context.settings
        self._context = context
        found = settings.roots()
        root.check({name: folder.root for name, folder in found.items() if folder.root})
        store = store_id(context.dir)
        self.folders = {
            name: HotFolder(Site(name, folder, context, store, self._tell))
            for name, folder in found.items()
        }

    async def run(self) -> None:
        """Work until cancelled."""
        for name, folder in self.folders.items():
            self._context.log.info("folder %s: put pictures into %s", name, folder.site.root.inbox)
            preset = folder.site.settings.preset
            if preset and preset not in self._context.info()["presets"]:
                self._context.log.warning(
                    "folder %s: there is no preset %r, so its pictures are refused. Correct the "
                    "key preset of its section, or save the preset",
                    name, preset,
                )  # fmt: skip
        self._tell()
        async with asyncio.TaskGroup() as group:
            for folder in self.folders.values():
                group.create_task(folder.run(), name=f"folder {folder.site.name}")
            group.create_task(self._hand_out(), name="deliveries")

    async def _hand_out(self) -> None:
        async for delivery in self._context.deliveries():
            name = delivery.reply[0]
            if name in self.folders:
                self.folders[name].outlet.owe(delivery)
            else:
                await delivery.retry(UNKNOWN_S)

    def _tell(self) -> None:
        """Say how the folders are."""
        sites = [folder.site for folder in self.folders.values()]
        troubles = [f"{site.name}: {site.trouble}" for site in sites if site.trouble]
        count = len(sites)
        well = f"looks after {count} folder{'s' if count > 1 else ''}"
        self._context.report(not troubles, " ".join(troubles) or well)


def store_id(folder: Path) -> str:
    """What this daemon's claims are named after; made once and kept in its own `folder`."""
    file = folder / "store-id"
    if not file.exists():
        platform.replace_durably(file, uuid.uuid4().hex.encode())
    return file.read_text("ascii").strip()
