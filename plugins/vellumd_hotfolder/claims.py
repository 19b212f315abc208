"""What this daemon has taken out of the inbox: `.work/<store>/<job>/<path in the inbox>`.

The first file that is renamed is the lock between two daemons on one folder. A claim
stays until its results lie in the outbox and its originals in done or failed: a claim
that is gone is a job that was delivered.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path

from vellumd_hotfolder import moves, names
from vellumd_hotfolder.plan import Order
from vellumd_hotfolder.root import Root

RESULTS = ".results"
"""Ending of the folder beside a claim that holds results on their way to the outbox."""


ELSEWHERE = "it lies on another disk than .work; a hot folder has to lie on one"
CLOSED = "it cannot be moved; give vellumd the right to, or close it elsewhere"


class Changed(Exception):
    """The file is not what was looked at, or somebody else has it."""


class Stuck(Exception):
    """The file cannot be moved; says why, as people can mend it."""


class Claims:
    """The claims of one hot folder."""

    def __init__(self, root: Root) -> None:
        self._root = root

    def home(self, job_id: str) -> Path:
        """The folder of a claim."""
        return self._root.work / job_id

    def over(self, job_id: str) -> bool:
        """Whether a claim is gone; raises FileNotFoundError where that is all of the disk."""
        if self.home(job_id).is_dir():
            return False
        if not self._root.there():
            raise FileNotFoundError("inbox")
        return True

    def results(self, job_id: str) -> Path:
        """The folder in which results wait for their place in the outbox."""
        return self._root.work / f"{job_id}{RESULTS}"

    def told(self, job_id: str) -> Path:
        """Where a NAME.error.txt is written before it gets its name."""
        return self._root.work / f"{job_id}.error.txt"

    def originals(self, job_id: str) -> list[str]:
        """Paths of a claim's files as they were in the inbox; pictures last."""
        return moves.files_below(self.home(job_id))

    def take(self, order: Order, job_id: str) -> list[Path]:
        """Move an order's files out of the inbox; where its pictures are now.

        Texts go first and pictures last, so that no picture is ever seen without the text
        that belongs to it. Raises `Changed` or `Stuck` with all files back where they were.
        """
        home = self.home(job_id)
        home.mkdir()
        try:
            for entry in (*order.texts, *order.pictures):
                source, target = self._root.inbox / entry.path, home / entry.path
                target.parent.mkdir(parents=True, exist_ok=True)
                os.rename(source, target)
                if not entry.still(target.lstat()):
                    raise Changed(entry.path)
        except (Changed, FileNotFoundError) as error:
            self.give_back(job_id)
            raise Changed(order.key) from error
        except OSError as error:
            self.give_back(job_id)
            if error.errno in moves.NO_ROOM:
                raise
            raise Stuck(ELSEWHERE if error.errno == errno.EXDEV else CLOSED) from error
        taken = [home / entry.path for entry in order.pictures]
        moves.sync([*taken, self._root.inbox / order.pictures[0].path, home])
        if order.kind == "folder":
            moves.remove_empty(self._root.inbox / order.key)
        return taken

    def give_back(self, job_id: str) -> None:
        """Put a claim's files back into the inbox."""
        home = self.home(job_id)
        moves.place({path: home / path for path in self.originals(job_id)}, self._root.inbox)
        moves.remove_empty(home)

    def close(self, job_id: str) -> None:
        """A claim is over: its files are where they belong."""
        home = self.home(job_id)
        for path in self.originals(job_id):
            (home / path).unlink()
        moves.remove_empty(home)
        moves.sync([home])
        moves.remove_empty(self.results(job_id))

    def all(self) -> list[str]:
        """The jobs that have a claim, oldest first; what is left of others is removed."""
        found = sorted(os.listdir(self._root.work))
        jobs = [name for name in found if "." not in name]
        for name in found:
            if name.partition(".")[0] not in jobs:
                self._sweep(self._root.work / name)
        return jobs

    def _sweep(self, folder: Path) -> None:
        if folder.is_file():
            folder.unlink()
        for path in moves.files_below(folder):
            (folder / path).unlink()
        moves.remove_empty(folder)


def pictures(paths: list[str]) -> list[str]:
    """Those of a claim's paths that are pictures."""
    return [path for path in paths if names.media_type(path)]
