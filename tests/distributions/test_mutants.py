"""The contract is worth its name: a door that breaks a promise fails the test of it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

LINES = Path(__file__).parent / "lines"
TOO_EARLY = """\
submitting = self.context.jobs.submit(request, key=id, reply=id)
                    asyncio.get_running_loop().call_later(0.1, asyncio.create_task, submitting)
                    job = type("Job", (), {"id": id})"""
IMPATIENT = "from vellumd.testing import contract\ncontract.WAIT_S = 3.0\n"


@pytest.mark.parametrize(
    ("right", "wrong", "test"),
    [
        ("key=id, ", "", "test_a_duplicate_is_the_same_job"),
        ("await self.owed.pop(id).delivered()", "pass", "test_a_confirmed_reply_is_no_longer_owed"),
        ("file = await", "await delivery.delivered(); file = await",
         "test_an_unconfirmed_reply_comes_again"),
        ("job = await self.context.jobs.submit(request, key=id, reply=id)",
         TOO_EARLY,
         "test_a_kill_while_sending"),
        (", RecursionError", "", "test_rubbish_harms_nobody"),
        ("return {\"error\": error.public()}", "return {\"accepted\": id}",
         "test_a_bad_picture_is_refused"),
        ("server.close()", "await asyncio.sleep(60)", "test_a_stop_is_quick"),
    ],
    ids=lambda value: value if value.startswith("test") else "",
)  # fmt: skip
def test_a_broken_door_fails(site: Path, tmp_path: Path, right: str, wrong: str, test: str) -> None:
    """The lines door with one promise taken out of it, tested where its author would."""
    code = (site / "vellumd_lines.py").read_text("utf-8")
    assert code.count(right) == 1
    (tmp_path / "vellumd_lines.py").write_text(code.replace(right, wrong), "utf-8")
    shutil.copy(LINES / "tests" / "test_contract.py", tmp_path)
    (tmp_path / "conftest.py").write_text(IMPATIENT)
    path = os.pathsep.join([str(tmp_path), os.environ["PYTHONPATH"]])
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", test, "."]
    done = subprocess.run(
        command, cwd=tmp_path, env={**os.environ, "PYTHONPATH": path}, timeout=120,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1, done.stdout
    assert test in done.stdout
