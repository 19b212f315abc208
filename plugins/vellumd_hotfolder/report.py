"""STATUS.txt and REPORT.csv: what the people who drop files see of it all."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import BinaryIO

from vellumd import Job
from vellumd_hotfolder import moves, names
from vellumd_hotfolder.root import Root

LISTED = 50
"""Names that a list in STATUS.txt has; the rest is counted."""
TOLD = ".error.txt"
"""Ending of the text beside an original that failed."""
COLUMNS = ("time", "file", "status", "result", "seconds", "message", "job")


@dataclass
class Status:
    """How a folder is: what waits and why, what is refused, what stands in the way."""

    in_work: int = 0
    arriving: int = 0
    waiting: Mapping[str, str] = field(default_factory=dict)
    refused: Mapping[str, str] = field(default_factory=dict)
    others: int = 0
    trouble: str = ""
    ready_at: datetime | None = None

    def text(self, done: int, failed: Sequence[tuple[str, str]], trouble: str = "") -> str:
        """STATUS.txt without its date; `failed` are names and reasons."""
        counts = [
            f"{done} done",
            f"{self.in_work} in work" if self.in_work else "",
            f"{self.arriving} in the inbox" if self.arriving else "",
            f"{len(self.waiting)} waiting" if self.waiting else "",
            f"{len(failed)} failed" if failed else "",
        ]
        first = f"{', '.join(filter(None, counts))}."
        if self.ready_at:
            first += f" Ready about {self.ready_at:%H:%M}."
        lists = [
            _list("Failed (each lies in the folder failed; move it back to try again):", failed),
            _list("Not begun:", self.waiting.items()),
            _list("Not touched:", self.refused.items()),
            _others(self.others),
        ]
        return "\n\n".join(filter(None, [first, trouble, *lists])) + "\n"


def _others(count: int) -> str:
    return {0: "", 1: "1 other file stays where it is."}.get(
        count, f"{count} other files stay where they are."
    )


def _list(title: str, items: Iterable[tuple[str, str]]) -> str:
    all_items = list(items)
    lines = [f"  {names.shown(name)}: {reason}" for name, reason in all_items[:LISTED]]
    if len(all_items) > LISTED:
        lines.append(f"  and {len(all_items) - LISTED} more")
    return "\n".join([title, *lines]) if lines else ""


def failures(failed: Path) -> list[tuple[str, str]]:
    """What lies in the folder failed: names, and what is said of those that are listed.

    A text whose picture was moved back into the inbox no longer counts.
    """
    found: list[tuple[str, str]] = []
    for top, _, files in os.walk(failed):
        texts = {name for name in files if name.endswith(TOLD)}
        for name in sorted(filter(names.media_type, files), key=names.natural):
            if (told := names.suffixed(name, "", TOLD)) in texts:
                reason = _first_line(Path(top, told)) if len(found) < LISTED else ""
                found.append((Path(top, name).relative_to(failed).as_posix(), reason))
    return found


def _first_line(file: Path) -> str:
    return file.read_text("utf-8", "replace").partition("\n")[0]


class Report:
    """REPORT.csv of one folder: a line an ended job, each once, also after a crash."""

    def __init__(self, root: Root) -> None:
        self._file = root.path / "REPORT.csv"
        self._new: dict[str, list[str]] = {}
        self._known: dict[str, str] | None = None

    @property
    def done(self) -> int:
        """Jobs that are done, as far back as the file goes."""
        return sum(status == "done" for status in (self._known or {}).values())

    def add(self, job: Job, file: str, results: Sequence[str]) -> None:
        """Note a job that has ended."""
        ended = (job.ended or job.created).astimezone()
        seconds = "" if job.elapsed_s is None else f"{job.elapsed_s:.1f}"
        message = job.error.message if job.error else ""
        self._add(ended, file, str(job.status), "; ".join(results), seconds, message, job.id)

    def add_refused(self, claim: str, file: str, message: str) -> None:
        """Note files that became no job."""
        self._add(datetime.now().astimezone(), file, "refused", "", "", message, claim)

    def _add(self, at: datetime, *cells: str) -> None:
        row = [f"{at:%Y-%m-%d %H:%M:%S}", *map(_harmless, cells)]
        self._new.setdefault(cells[-1], row)

    def knows(self, job_id: str) -> bool:
        """Whether a job has its line."""
        return job_id in self._new or job_id in (self._known or {})

    def read(self) -> None:
        """Learn which jobs have their line; blocking."""
        if self._known is None:
            known: dict[str, str] = {}
            if self._file.exists():
                with self._file.open(encoding="utf-8-sig", errors="replace", newline="") as file:
                    known = {
                        row[-1]: row[2] for row in csv.reader(file) if len(row) == len(COLUMNS)
                    }
                known.pop(COLUMNS[-1], None)
            self._known = known

    def write(self) -> None:
        """Append what is new; blocking. Raises OSError, as where a spreadsheet locks it."""
        self.read()
        assert self._known is not None
        new = self._new.copy()  # the loop adds to it meanwhile
        rows = {job: row for job, row in new.items() if job not in self._known}
        if rows:
            text = io.StringIO()
            writer = csv.writer(text, lineterminator="\r\n")
            with self._file.open("ab+") as file:
                if file.tell() == 0:
                    text.write("\ufeff")
                    writer.writerow(COLUMNS)
                elif _last_byte(file) != b"\n":  # a line that a crash cut off
                    text.write("\r\n")
                writer.writerows(rows.values())
                file.write(text.getvalue().encode("utf-8"))
        self._known |= {job: row[2] for job, row in rows.items()}
        for job in new:
            del self._new[job]


def _last_byte(file: BinaryIO) -> bytes:
    file.seek(-1, os.SEEK_END)
    return file.read(1)


def _harmless(cell: str) -> str:
    """A cell that no spreadsheet takes for a formula (OWASP, CSV injection)."""
    text = names.shown(cell)
    return f"'{text}" if text.startswith(("=", "+", "-", "@")) else text


def write_status(root: Root, text: str) -> None:
    """Put STATUS.txt in place; raises OSError. A mark tells Windows that it is UTF-8."""
    now = datetime.now().astimezone()
    body = f"vellumd, {now:%Y-%m-%d %H:%M}\n\n{text}".replace("\n", "\r\n")
    moves.put(body.encode("utf-8-sig"), root.work / "STATUS.txt", root.path / "STATUS.txt")
