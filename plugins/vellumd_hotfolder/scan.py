"""All that lies in an inbox, as one picture of it: the scan is the truth, events are hints."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from vellumd_hotfolder import names

DEPTH_MAX = 32
"""Folders in folders; deeper ones are loops of mounts, or nobody's pictures."""

PATH_MAX = 3500
"""Bytes of a path: Linux takes 4,096, and in .work and failed it is longer than here."""

Signature = tuple[int, int, int, int]


@dataclass(frozen=True, slots=True)
class Entry:
    """A regular file: its path from the inbox, with `/`, and how it looks."""

    path: str
    name: str
    size: int
    mtime_ns: int
    ctime_ns: int
    inode: int

    @property
    def signature(self) -> Signature:
        """Differs once the file was written to, also where its writer holds mtime still.

        That is what Samba does while a copy runs; POSIX moves ctime all the same.
        """
        return self.size, self.mtime_ns, self.ctime_ns, self.inode

    def still(self, found: os.stat_result) -> bool:
        """Whether this is what was seen, though it has got another name since.

        Listings of Windows hold no inode.
        """
        same = not self.inode or found.st_ino == self.inode
        looks = (found.st_size, found.st_mtime_ns) == (self.size, self.mtime_ns)
        return same and looks and stat.S_ISREG(found.st_mode)


@dataclass(slots=True)
class Folder:
    """A folder and all below it; litter is left out, and `others` are just counted."""

    path: str
    name: str
    pictures: list[Entry] = field(default_factory=list)
    texts: dict[str, Entry] = field(default_factory=dict)
    folders: list[Folder] = field(default_factory=list)
    others: int = 0

    def walk(self) -> Iterator[Folder]:
        """The folder and all below it."""
        yield self
        for folder in self.folders:
            yield from folder.walk()


@dataclass(slots=True)
class Survey:
    """An inbox, and what in it is refused: path and reason."""

    inbox: Folder
    refused: dict[str, str] = field(default_factory=dict)


_TEXTS = {".txt", ".json", ".toml"}


def survey(inbox: Path) -> Survey:
    """Look at everything below `inbox`; raises OSError where that itself cannot be read."""
    found = Survey(Folder("", ""))
    _look(os.fspath(inbox), found.inbox, found.refused, 0)
    return found


def _look(path: str, folder: Folder, refused: dict[str, str], depth: int) -> None:
    prefix = f"{folder.path}/" if folder.path else ""
    with os.scandir(path) as listing:
        for item in listing:
            name, below = item.name, prefix + item.name
            if names.is_litter(name):
                continue
            try:
                if reason := _refusal(item, depth):
                    refused[below] = reason
                elif item.is_dir(follow_symlinks=False):
                    child = Folder(below, name)
                    folder.folders.append(child)
                    _look(item.path, child, refused, depth + 1)
                else:
                    _sort(item, below, folder)
            except OSError as error:  # gone since it was listed, or not ours to read
                if not isinstance(error, FileNotFoundError):
                    refused[below] = "it cannot be read; give vellumd the right to"
    folder.pictures.sort(key=lambda entry: names.natural(entry.name))
    folder.folders.sort(key=lambda child: names.natural(child.name))


def _refusal(item: os.DirEntry[str], depth: int) -> str:
    """Why an entry is not touched; empty if it may be."""
    if not names.valid(item.name):
        return "its name is not UTF-8; rename it"
    if len(item.path.encode()) > PATH_MAX:
        return "its path is too long"
    if item.is_symlink():
        return "it is a link; put the file itself here"
    if item.is_dir(follow_symlinks=False):
        if names.media_type(item.name):
            return "it is a folder with a picture's name; rename it"
        return "it lies too deep" if depth >= DEPTH_MAX else ""
    return "" if item.is_file(follow_symlinks=False) else "it is no ordinary file"


def _sort(item: os.DirEntry[str], path: str, folder: Folder) -> None:
    picture = names.media_type(item.name)
    text = os.path.splitext(item.name)[1].lower() in _TEXTS or item.name == names.READY
    if not picture and not text:
        folder.others += 1
        return
    found = item.stat(follow_symlinks=False)
    entry = Entry(
        path, item.name, found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino
    )
    if picture:
        folder.pictures.append(entry)
    else:
        folder.texts[names.key(item.name)] = entry
