"""The contract is worth its name: a door that breaks a promise fails the test of it."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

LINES = Path(__file__).parent / "lines"
TOO_EARLY = """\
submitting = self.context.jobs.submit(request, key=id, reply=id)
                    asyncio.get_running_loop().call_later(0.1, asyncio.create_task, submitting)
                    job = type("Job", (), {"id": id})"""
IMPATIENT = "from vellumd.testing import contract\ncontract.WAIT_S = 3.0\n"


BROKEN = {
    "test_a_duplicate_is_the_same_job": ("key=id, ", ""),
    "test_a_confirmed_reply_is_no_longer_owed": ("await self.owed.pop(id).delivered()", "pass"),
    "test_an_unconfirmed_reply_comes_again":
        ("file = await", "await delivery.delivered(); file = await"),
    "test_a_kill_while_sending":
        ("job = await self.context.jobs.submit(request, key=id, reply=id)", TOO_EARLY),
    "test_rubbish_harms_nobody": (", RecursionError", ""),
    "test_a_bad_picture_is_refused":
        ("return {\"error\": error.public()}", "return {\"accepted\": id}"),
    "test_a_stop_is_quick": ("server.close()", "await asyncio.sleep(60)"),
}  # fmt: skip
"""By the test that must fail: what a promise is kept by, and what is put in its place."""


@pytest.fixture(scope="module")
def tested(
    site: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, subprocess.Popen[str]]]:
    """The lines door with one promise taken out of it each, tested where its author would.

    All at once: such a test waits more than it works.
    """
    with contextlib.ExitStack() as running:
        yield {
            test: running.enter_context(started(site, tmp_path_factory.mktemp("door"), test))
            for test in BROKEN
        }


def started(site: Path, folder: Path, test: str) -> subprocess.Popen[str]:
    """pytest, running `test` with what breaks it, in `folder`."""
    code, (right, wrong) = (site / "vellumd_lines.py").read_text("utf-8"), BROKEN[test]
    assert code.count(right) == 1
    (folder / "vellumd_lines.py").write_text(code.replace(right, wrong), "utf-8")
    shutil.copy(LINES / "tests" / "test_contract.py", folder)
    (folder / "conftest.py").write_text(IMPATIENT)
    path = os.pathsep.join([str(folder), os.environ["PYTHONPATH"]])
    return subprocess.Popen(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", test, "."],
        cwd=folder, env={**os.environ, "PYTHONPATH": path}, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


@pytest.mark.parametrize("test", BROKEN)
def test_a_broken_door_fails(tested: dict[str, subprocess.Popen[str]], test: str) -> None:
    """The test of the promise that it breaks says so."""
    said, _ = tested[test].communicate(timeout=120)
    assert tested[test].returncode == 1, said
    assert test in said
