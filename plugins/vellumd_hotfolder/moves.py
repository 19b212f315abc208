"""Moving files so that nothing is written over and a crash in between is harmless."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from itertools import count
from pathlib import Path, PurePosixPath

from vellumd import platform
from vellumd_hotfolder import names

NO_ROOM = (errno.ENOSPC, errno.EDQUOT)
"""What a full disk answers."""


def move_new(source: Path, target: Path) -> None:
    """Rename without writing over anything; raises FileExistsError.

    Killed in between, a file has both names, and doing it again ends it.
    """
    if sys.platform == "win32":
        source.rename(target)
        return
    try:
        os.link(source, target, follow_symlinks=False)
    except FileExistsError:
        if not os.path.samefile(source, target):
            raise
    except FileNotFoundError:
        raise
    except OSError:  # exFAT and many shares have no hard links
        if os.path.lexists(target):
            raise FileExistsError(target) from None
        source.rename(target)
        return
    source.unlink()


def put(text: bytes, aside: Path, target: Path) -> None:
    """Put a text in place of `target`, durably; what a kill leaves lies at `aside`."""
    aside.unlink(missing_ok=True)
    platform.write_durably(aside, text)
    os.replace(aside, target)
    platform.fsync_dir(target.parent)


def files_below(folder: Path) -> list[str]:
    """Paths of all files below `folder`, with `/`; texts before pictures, in natural order."""
    found = [
        Path(top, name).relative_to(folder).as_posix()
        for top, _, files in os.walk(folder)
        for name in files
    ]
    return sorted(found, key=lambda path: (names.media_type(path) is not None, names.natural(path)))


def with_number(path: str, number: int) -> str:
    """`path` with its name numbered."""
    pure = PurePosixPath(path)
    return str(pure.with_name(names.numbered(pure.name, number)))


def place(moves: Mapping[str, Path], folder: Path) -> dict[str, str]:
    """Move files to `folder`: the paths wanted, and where each lies now; all durable.

    All get the same number behind their names, so that a sidecar stays its picture's.
    Returns the paths that they got.
    """
    left, got = dict(moves), {}
    for number in count(1):
        wanted = {path: folder / with_number(path, number) for path in left}
        if any(taken(left[path], target) for path, target in wanted.items()):
            continue
        for path, target in wanted.items():
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                move_new(left[path], target)
            except FileExistsError:
                break  # somebody was quicker; the rest gets the next number
            del left[path]
            got[path] = with_number(path, number)
        if not left:
            break
    sync(folder / path for path in got.values())
    return got


def taken(source: Path, target: Path) -> bool:
    """Whether another file has the name `target`."""
    try:
        return not os.path.samestat(source.lstat(), target.lstat())
    except FileNotFoundError:
        return False


def sync(files: Iterable[Path]) -> None:
    """Make the names of files durable."""
    for folder in {file.parent for file in files}:
        platform.fsync_dir(folder)


def remove_empty(folder: Path) -> None:
    """Remove a folder and the folders in it, as far as they hold no file."""
    for top in _bottom_up(folder):
        try:
            os.rmdir(top)
        except OSError:
            continue


def _bottom_up(folder: Path) -> Iterator[str]:
    for top, _, _ in os.walk(folder, topdown=False):
        yield top
