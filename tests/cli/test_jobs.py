"""`vellumd jobs`: lists page by page, acts on ids and on filters."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable

import pytest

from tests.cli.conftest import Api
from vellumd.cli import main

Command = Callable[..., str]


@pytest.fixture
def jobs(api: Api, folder: object, capsys: pytest.CaptureFixture[str]) -> Command:
    """Run `vellumd jobs` against three jobs, two of them failed, and return its output."""
    api.inputs["0" * 64] = b""
    for prompt, batch in (("make it red", "one"), ("fail 1", "one"), ("fail 2", "two")):
        api.add({"images": ["sha256:" + "0" * 64], "prompt": prompt, "batch": batch})

    def command(*words: str, code: int = 0) -> str:
        assert main.main(["jobs", *words, "--url", api.url]) == code
        out, err = capsys.readouterr()
        return out + err

    return command


def test_list_reads_every_page(jobs: Command) -> None:
    """All jobs are listed with state, time, source and prompt or error."""
    lines = jobs().splitlines()
    assert len(lines) == 3
    assert lines[0] == "job-1  done       2026-01-02 03:04:05  http      make it red"
    assert lines[1].endswith("No room.")


def test_list_filters(jobs: Command) -> None:
    """--failed, --status and --batch narrow the list."""
    assert len(jobs("--failed").splitlines()) == 2
    assert len(jobs("list", "--status", "done").splitlines()) == 1
    assert len(jobs("--failed", "--batch", "two").splitlines()) == 1


def test_json_is_one_job_a_line(jobs: Command) -> None:
    """--json can be piped into other programs."""
    assert [json.loads(line)["id"] for line in jobs("--json").splitlines()] == [
        "job-1",
        "job-2",
        "job-3",
    ]


def test_show_prints_the_whole_job(jobs: Command) -> None:
    """`show ID` is the job's public JSON."""
    assert json.loads(jobs("show", "job-2"))["error"]["code"] == "out_of_memory"


def test_actions_take_ids(jobs: Command, api: Api) -> None:
    """cancel, retry and delete work on the ids given."""
    assert "cancelled" in jobs("cancel", "job-1")
    assert "queued" in jobs("retry", "job-2")
    assert jobs("delete", "job-3", "job-1") == "job-3 deleted\njob-1 deleted\n"
    assert list(api.jobs) == ["job-2"]


def test_actions_take_filters(jobs: Command, api: Api) -> None:
    """`delete --failed` deletes all failed jobs, over all pages."""
    jobs("delete", "--failed")
    assert list(api.jobs) == ["job-1"]


def test_the_queue_is_paused_and_resumed(jobs: Command, api: Api) -> None:
    """Both say how the queue is then; --json is for programs."""
    assert jobs("pause") == "paused: 3 waiting, 1 running to its end\n"
    assert api.held == "paused"
    assert json.loads(jobs("resume", "--json"))["held"] == ""
    assert jobs("resume") == "resumed: 3 waiting, 1 running\n"


@pytest.mark.parametrize("words", [("pause", "job-1"), ("resume", "--failed")])
def test_a_single_job_cannot_be_paused(jobs: Command, api: Api, words: tuple[str, ...]) -> None:
    """Nobody believes to have paused one job and stops all of them."""
    assert "whole queue" in jobs(*words, code=main.USAGE)
    assert api.held == ""


def test_an_action_on_everything_has_to_be_said(jobs: Command, api: Api) -> None:
    """`delete` without id and filter does nothing but ask."""
    assert "Say which" in jobs("delete", code=main.FAILED)
    assert len(api.jobs) == 3


def test_an_unknown_job_is_told(jobs: Command) -> None:
    """The daemon's 404 becomes its sentence and exit code 1."""
    assert "There is no such job." in jobs("show", "nope", code=main.FAILED)


def test_a_refusal_keeps_nothing_from_the_others(jobs: Command) -> None:
    """Each id is tried; the one refused is named and the exit code is 1."""
    told = jobs("show", "no pe/x", "job-1", code=main.FAILED)
    assert "vellumd: no%20pe%2Fx: There is no such job." in told
    assert '"id": "job-1"' in told


def test_a_prompt_cannot_steer_the_terminal(jobs: Command, api: Api) -> None:
    """Escape sequences that somebody sent as a prompt are not passed on."""
    api.jobs["job-1"]["request"]["prompt"] = "\x1b[2J\x9bred\u202e"
    assert jobs("--status", "done").splitlines()[0].endswith("  [2Jred")


def test_no_daemon_ends_with_69(folder: object, capsys: pytest.CaptureFixture[str]) -> None:
    """Without a daemon the command says how to start one."""
    assert main.main(["jobs"]) == main.UNAVAILABLE
    assert "vellumd serve" in capsys.readouterr().err


def test_a_closed_pipe_is_no_error(jobs: Command, api: Api) -> None:
    """`vellumd jobs | head -1` ends quietly once the reader has gone."""
    words = [sys.executable, "-m", "vellumd", "jobs", "--url", api.url]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.close()
        assert child.stderr is not None
        assert child.stderr.read() == b""
    assert child.returncode == main.OK
