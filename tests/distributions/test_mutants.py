"""The contract is worth its name: a door that breaks a promise fails the test of it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

LINES = Path(__file__).parent / "lines"
HASTE = "from vellumd.testing import contract\n\ncontract.WAIT_S = 5.0\n"
"""A broken door is waited for in vain, so not for long."""


@pytest.mark.parametrize(
    ("right", "wrong", "test"),
    [
        ('key=f"{sender} {id}", ', "", "test_a_duplicate_is_the_same_job"),
        ("await delivery.delivered()", "pass", "test_a_confirmed_reply_is_no_longer_owed"),
        ("await write(writer, reply)", "await delivery.delivered(); await write(writer, reply)",
         "test_an_unconfirmed_reply_comes_again"),
        ("job = await", "await write(writer, {'id': id, 'accepted': id}); job = await",
         "test_a_kill_while_sending"),
        (", RecursionError", "", "test_rubbish_harms_nobody"),
        ("return {\"id\": order.get(\"id\"), \"refused\"", "return {\"accepted\"",
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
    (tmp_path / "conftest.py").write_text(HASTE, "utf-8")
    path = os.pathsep.join([str(tmp_path), os.environ["PYTHONPATH"]])
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", test, "."]
    done = subprocess.run(
        command, cwd=tmp_path, env={**os.environ, "PYTHONPATH": path}, timeout=120,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1, done.stdout
    assert test in done.stdout
