"""`vellumd jobs`: look at the daemon's jobs and steer them."""

from __future__ import annotations

import argparse
import json
import urllib.parse
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from vellumd.cli.main import FAILED, OK, USAGE, Refused, load_settings, tell

if TYPE_CHECKING:
    from vellumd.cli.client import Client

ACTIONS = ("list", "show", "cancel", "retry", "delete", "pause", "resume")
STATUSES = ("queued", "running", "done", "failed", "cancelled")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What to do, with which jobs."""
    from vellumd.cli import arguments

    parser.add_argument("action", nargs="?", choices=ACTIONS, default="list", help="default: list")
    parser.add_argument("ids", nargs="*", metavar="ID", help="jobs; without, those of the filters")
    parser.add_argument("--batch", help="only jobs with this label")
    parser.add_argument("--status", choices=STATUSES, help="only jobs in this state")
    parser.add_argument("--failed", action="store_true", help="short for --status failed")
    parser.add_argument("--json", action="store_true", help="print JSON, one job a line")
    arguments.add_daemon(parser)


def run(args: argparse.Namespace) -> int:
    """Do the action with every job that is meant."""
    settings = load_settings(args).settings
    from vellumd.cli import client

    daemon = client.require(settings, args)
    if args.action in ("pause", "resume"):
        return switch(daemon, args)
    if args.action == "list" and not args.ids:
        show(daemon.jobs(filters(args)), args.json)
        return OK
    codes = [_tried(daemon, args, job_id) for job_id in _meant(daemon, args)]
    return max(codes, default=OK)


def switch(daemon: Client, args: argparse.Namespace) -> int:
    """Pause or resume the queue, which is one for all jobs."""
    if args.ids or filters(args):
        return tell(f"{args.action} is for the whole queue: give no ID and no filter.", USAGE)
    queue = daemon.post(f"/v1/queue/{args.action}")["queue"]
    if args.json:
        print(json.dumps(queue))
    elif args.action == "pause":
        print(f"paused: {queue['queued']} waiting, {queue['running']} running to its end")
    else:
        print(f"resumed: {queue['queued']} waiting, {queue['running']} running")
    return OK


def filters(args: argparse.Namespace) -> dict[str, str]:
    """The query of the filters."""
    status = "failed" if args.failed else args.status
    wanted = {"batch": args.batch, "status": status}
    return {name: value for name, value in wanted.items() if value}


def _meant(daemon: Client, args: argparse.Namespace) -> list[str]:
    """The ids given, else those of all jobs that match the filters."""
    if args.ids:
        return [urllib.parse.quote(job_id, safe="", errors="replace") for job_id in args.ids]
    if not filters(args):
        raise Refused(f"Say which: vellumd jobs {args.action} ID, or --batch, --status, --failed.")
    return [job["id"] for job in daemon.jobs(filters(args))]


def _tried(daemon: Client, args: argparse.Namespace, job_id: str) -> int:
    """Do the action with one job; a refusal is told and keeps nothing from the others."""
    try:
        act(daemon, args.action, job_id, args.json)
    except Refused as error:
        return tell(f"{job_id}: {error}", FAILED)
    return OK


def act(daemon: Client, action: str, job_id: str, as_json: bool) -> None:
    """Do `action` with one job and print what became of it."""
    if action == "delete":
        daemon.delete(f"/v1/jobs/{job_id}")
        print(f"{job_id} deleted")
    elif action in ("cancel", "retry"):
        job = daemon.post(f"/v1/jobs/{job_id}/{action}")
        show([job], as_json)
    else:
        job = daemon.get(f"/v1/jobs/{job_id}")
        print(json.dumps(job, indent=None if as_json else 2, ensure_ascii=as_json))


def show(jobs: Iterable[dict[str, Any]], as_json: bool) -> None:
    """Print jobs one a line: id, state, source, age, prompt or error."""
    for job in jobs:
        if as_json:
            print(json.dumps(job))
            continue
        request = job["request"] or {}
        text = job["error"]["message"] if job["error"] else request.get("prompt", "(expired)")
        created = job["created"][:19].replace("T", " ")
        print(f"{job['id']}  {job['status']:<9}  {created}  {job['source']:<8}  {_cut(text)}")


def _cut(text: str, width: int = 60) -> str:
    """One line of `text`; what steers terminals is left out, since others wrote it."""
    line = "".join(char for char in " ".join(text.split()) if char.isprintable())
    return line if len(line) <= width else f"{line[: width - 3]}..."
