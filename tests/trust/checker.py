"""Decides from a recorded history whether vellumd kept its promises.

Pure: no clock, no network. Each `check_*` yields a sentence per broken promise; the
names in brackets are the invariants of docs/architecture.md. A client operation whose
outcome is unknown (the connection broke) is no evidence of failure.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

TERMINAL = ("done", "failed", "cancelled")


@dataclass(frozen=True)
class Execution:
    """The engine began to work on a job, `at` seconds since the epoch."""

    job: str
    at: float


@dataclass
class History:
    """What clients, the engine and the killer noted, and what was there in the end.

    `accepted`: key → ids acknowledged for it, in order. `kills`: seconds since the epoch.
    `final`: id → job as last shown. `events`: id → durable events. `files`: id → whether
    each result's bytes matched its SHA-256. `unknown_status`: HTTP status of a made-up id.
    """

    accepted: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    executions: list[Execution] = field(default_factory=list)
    kills: list[float] = field(default_factory=list)
    final: dict[str, dict[str, Any]] = field(default_factory=dict)
    events: dict[str, list[dict[str, object]]] = field(default_factory=dict)
    files: dict[str, bool] = field(default_factory=dict)
    unknown_status: int = 0

    @property
    def jobs(self) -> set[str]:
        """Every id that a client was told."""
        return {job for ids in self.accepted.values() for job in ids}


def check(history: History) -> list[str]:
    """All broken promises; empty when all were kept."""
    checks = (check_lost, check_ends, check_keys, check_executions, check_results, check_unknown)
    return [broken for one in checks for broken in one(history)]


def check_lost(history: History) -> Iterator[str]:
    """[I1] What was acknowledged is there."""
    for job in history.jobs - history.final.keys():
        yield f"I1: job {job} was accepted and is lost"


def check_ends(history: History) -> Iterator[str]:
    """[I2] Every job ended, exactly once."""
    for job, shown in history.final.items():
        if shown["status"] not in TERMINAL:
            yield f"I2: job {job} is {shown['status']} after the end"
        ends = [event["type"] for event in history.events[job] if event["type"] in TERMINAL]
        if len(ends) != 1:
            yield f"I2: job {job} ended {len(ends)} times: {ends}"


def check_keys(history: History) -> Iterator[str]:
    """[I6] One key always gave one job."""
    for key, ids in history.accepted.items():
        if len(set(ids)) > 1:
            yield f"I6: key {key} gave {len(set(ids))} jobs"


RUNGS = ("memory_freed", "vae_tiled")
"""Warnings that record a repetition for lack of memory: no kill is behind it."""


def rungs(shown: dict[str, Any]) -> int:
    """How often a job tells to have been repeated for lack of memory."""
    return sum(warning["code"] in RUNGS for warning in shown.get("warnings", ()))


def check_executions(history: History) -> Iterator[str]:
    """[I4] At most one run more per kill and recorded rung, and none after a job was done."""
    runs = Counter(execution.job for execution in history.executions)
    repeated = sum(count - 1 for count in runs.values())
    recorded = sum(rungs(shown) for shown in history.final.values())
    if repeated > len(history.kills) + recorded:
        yield f"I4: {repeated} runs too many for {len(history.kills)} kills and {recorded} rungs"
    for execution in history.executions:
        for event in history.events.get(execution.job, ()):
            if event["type"] == "done" and execution.at > float(str(event["at"])):
                yield f"I4: job {execution.job} was run after it was done"
    for job, count in runs.items():
        if count > 1 + len(history.kills) + rungs(history.final.get(job, {})):
            yield f"I4: job {job} was run {count} times"


def check_results(history: History) -> Iterator[str]:
    """[I7] Done means that the files are there and match."""
    for job, shown in history.final.items():
        if shown["status"] == "done" and not history.files.get(job):
            yield f"I7: a result of job {job} is missing or does not match its SHA-256"


def check_unknown(history: History) -> Iterator[str]:
    """[I9] An unknown id is not found, never done."""
    if history.unknown_status != 404:
        yield f"I9: an unknown id answered {history.unknown_status}"
