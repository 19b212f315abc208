"""The way out: results into the outbox, originals to done or failed. Blocking; in threads.

Every step can be done again after a crash: results are first written beside their claim,
all of them, and each then moves into the outbox once.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from vellumd import platform
from vellumd_hotfolder import moves, names, report
from vellumd_hotfolder.claims import Claims, pictures
from vellumd_hotfolder.plan import Kind
from vellumd_hotfolder.root import Root

PARTIAL = ".partial"


def deliver(
    root: Root, claims: Claims, job_id: str, kind: Kind, results: Sequence[Path], *, keep: bool
) -> tuple[str, list[str]]:
    """Put a job's `results` into the outbox and its originals to done.

    Returns the first picture's path and the results' paths. Nothing happens where the claim
    is gone: then all was done before. Raises OSError where the disk is full, away or
    read-only; what was done by then is not done again.
    """
    if claims.over(job_id):
        return "", []
    home = claims.home(job_id)
    originals = claims.originals(job_id)
    waiting = _write(claims.results(job_id), results)
    placed = _place(root.outbox, waiting, originals, kind, len(results))
    if keep:
        moves.place({path: home / path for path in originals}, root.done)
    claims.close(job_id)
    return next(iter(pictures(originals)), ""), placed


def refuse(root: Root, claims: Claims, job_id: str, sentence: str) -> str:
    """Put originals to failed, with a sentence beside each picture; the first one's path.

    Nothing happens where the claim is gone. Raises OSError.
    """
    if claims.over(job_id):
        return ""
    home = claims.home(job_id)
    originals = claims.originals(job_id)
    number = _free(root.failed, home, originals)
    for path in pictures(originals):
        target = root.failed / moves.with_number(path, number)
        target.parent.mkdir(parents=True, exist_ok=True)
        told = target.with_name(names.suffixed(target.name, "", report.TOLD))
        moves.put(sentence.encode(), claims.told(job_id), told)
    moves.place({path: home / path for path in originals}, root.failed)
    claims.close(job_id)
    return next(iter(pictures(originals)), "")


def finish(root: Root, claims: Claims, job_id: str, *, keep: bool) -> None:
    """Put originals to done without a result: they were edited before."""
    home = claims.home(job_id)
    if keep:
        moves.place({path: home / path for path in claims.originals(job_id)}, root.done)
    claims.close(job_id)


def _write(box: Path, results: Sequence[Path]) -> list[Path]:
    """Copy results beside their claim, durably and all or none; those not placed yet."""
    if not box.exists():
        partial = box.with_name(box.name + PARTIAL)
        partial.mkdir(exist_ok=True)
        for number, result in enumerate(results, start=1):
            copy = partial / f"{number}{result.suffix}"
            copy.unlink(missing_ok=True)
            platform.write_durably(copy, result.read_bytes())
        platform.fsync_dir(partial)
        os.rename(partial, box)
        platform.fsync_dir(box.parent)
    return [box / path for path in moves.files_below(box)]


def _place(
    outbox: Path, waiting: list[Path], originals: list[str], kind: Kind, count: int
) -> list[str]:
    placed: list[str] = []
    for result in waiting:
        if result.stat().st_nlink > 1:  # killed right after it got its name in the outbox
            result.unlink()
            continue
        name = result_name(originals, kind, result.suffix, int(result.stem) if count > 1 else 0)
        placed += moves.place({name: result}, outbox).values()
    return placed


def result_name(originals: list[str], kind: Kind, ending: str, number: int) -> str:
    """The path of a result in the outbox: that of its original, with what it became.

    `number` counts the results of one job, 0 where there is only one.
    """
    first = PurePosixPath(next(iter(pictures(originals)), f"picture{ending}"))
    addition = f"_{number}" if number else ""
    if kind == "folder":
        folder = first.parent
        return str(folder.with_name(_cut(folder.name, addition + ending)))
    same = names.media_type(first.name) == names.media_type(ending and f"x{ending}")
    return str(
        first.with_name(names.suffixed(first.name, addition, first.suffix if same else ending))
    )


def _cut(name: str, tail: str) -> str:
    """A folder's name, dots and all, with a tail; as long as a disk takes."""
    room = names.NAME_MAX - len(tail.encode("utf-8"))
    return name.encode("utf-8")[:room].decode("utf-8", "ignore") + tail


def _free(folder: Path, home: Path, originals: list[str]) -> int:
    """The number under which none of the originals would meet another file."""
    number = 1
    while any(
        moves.taken(home / path, folder / moves.with_number(path, number)) for path in originals
    ):
        number += 1
    return number
