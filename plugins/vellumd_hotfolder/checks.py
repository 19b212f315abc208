"""What `vellumd doctor` asks of hot folders: are they there, can they be written to."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from vellumd import Check

if TYPE_CHECKING:
    from vellumd_hotfolder.plugin import HotfolderSettings


async def check_roots(settings: HotfolderSettings) -> Iterable[Check]:
    """One finding a folder."""
    roots = settings.roots()
    if not roots:
        return [Check(False, "hotfolder: no folder; set plugins.hotfolder.root")]
    return [
        await asyncio.to_thread(_check, name, folder.root)
        for name, folder in roots.items()
        if folder.root is not None
    ]


def _check(name: str, root: Path) -> Check:
    if not (root / "inbox").is_dir():
        made = "it is made at the start" if root.parent.is_dir() else "its disk is away"
        return Check(root.parent.is_dir(), f"hotfolder {name}: there is no inbox yet; {made}")
    parts = [root, *(root / part for part in ("inbox", "outbox", "done", "failed"))]
    closed = [part.name for part in parts if part.is_dir() and not os.access(part, os.W_OK)]
    if closed:
        text = f"hotfolder {name}: vellumd may not write to {', '.join(closed)}"
        return Check(False, text)
    return Check(True, f"hotfolder {name}: inbox, outbox, done and failed can be written to")
