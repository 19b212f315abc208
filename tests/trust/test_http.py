"""Schemathesis against a real daemon: whatever /openapi.json allows, and more, no answer is 5xx."""

from __future__ import annotations

import base64
import json
import os
import random
import subprocess
import sys
import urllib.request
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Record
from vellumd.testing import DaemonProcess, free_port
from vellumd.testing.contract import picture_of

ROOT = Path(__file__).parents[2]
CONFIG = """
[[operations]]
include-path = "/readyz"
checks.not_a_server_error.expected-statuses = ["2xx", "4xx", 503]
"""
"""The one route whose 503 is no trouble, but its answer."""
LEFT_OUT = ("/v1/events", "/v1/queue/pause")
"""A stream that never ends, and what would let /generate wait for ever."""


def fuzz(folder: Path, url: str, jobs: list[str], seed: int, *more: str) -> dict[str, Any]:
    """What Schemathesis found; `more` are options."""
    (folder / "schemathesis.toml").write_text(CONFIG)
    report = folder / "report.json"
    command = [
        sys.executable, "-m", "schemathesis.cli", "--config-file", "schemathesis.toml",
        "run", f"{url}/openapi.json", "--checks", "not_a_server_error", "--seed", str(seed),
        "--continue-on-failure", "--no-shrink", "--no-color", "--request-timeout", "20",
        "--generation-database", "none", "--report-json-path", str(report),
        *(word for path in LEFT_OUT for word in ("--exclude-path", path)), *more,
    ]  # fmt: skip
    values = {
        "SCHEMATHESIS_HOOKS": "tests.trust.http_values",
        "VALUES_JOBS": json.dumps(jobs),
        "VALUES_PICTURE": base64.b64encode(picture_of("fuzz")).decode(),
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
    }
    done = subprocess.run(
        command, cwd=folder, env={**os.environ, **values}, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, f"seed {seed}\n{done.stdout[-6000:]}{done.stderr[-2000:]}"
    found: dict[str, Any] = json.loads(report.read_text("utf-8"))
    return found


def edit(url: str, prompt: str) -> str:
    """A job that has ended; its id."""
    picture = base64.b64encode(picture_of("fuzz")).decode()
    request = urllib.request.Request(
        f"{url}/v1/jobs",
        json.dumps({"images": [picture], "prompt": prompt}).encode(),
        {"Content-Type": "application/json", "Prefer": "wait=20"},
    )
    with urllib.request.urlopen(request, timeout=30) as answer:
        return str(json.load(answer)["id"])


@pytest.mark.timeout(1800)
def test_no_request_is_answered_by_5xx(full: bool, tmp_path: Path, record: Record) -> None:
    """Random and wrong values in every parameter and body; in full also in turns of requests."""
    seed = random.SystemRandom().randrange(2**31)
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    daemon = DaemonProcess(tmp_path, "http", {"port": port})
    daemon.start()
    try:
        jobs = [edit(url, f"invert {n}") for n in range(6)]
        some = ["--phases", "fuzzing", "--max-examples", "4"]  # as many on a busy machine
        every = ["--max-examples", "200", "--max-time", "900"]
        found = fuzz(tmp_path, url, jobs, seed, *(every if full else some))
        assert not daemon.crashed() and daemon.alive
        made = len(daemon.jobs())
    finally:
        daemon.close()
    record("http-fuzz", {"seed": seed, **figures(found), "jobs": made})
    assert made > len(jobs), "no generated edit was accepted"


def figures(found: dict[str, Any]) -> dict[str, Any]:
    """Requests of a report, and how the operations took them."""
    answers: Counter[str] = Counter()
    for phases in found["valid_rates"].values():
        for counts in phases.values():
            answers.update(counts)
    cases = found["test_cases"]
    return {
        "operations": found["operations"]["tested"],
        "requests": cases["generated"],
        "answered_5xx": cases["with_failures"],
        "errored": cases["errored"],
        "first_answers": dict(answers),
        "seconds": round(found["running_time"]),
    }
