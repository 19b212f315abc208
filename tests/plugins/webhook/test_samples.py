"""The receivers of docs/webhooks.md, run as they are written, beside a real daemon."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.plugins.webhook.conftest import OpenDoor, submit, until
from tests.plugins.webhook.receiver import SECRET
from vellumd.testing import free_port
from vellumd_webhook import wire
from vellumd_webhook.client import FailedError, open_client
from vellumd_webhook.plugin import TargetSettings

PAGE = (Path(__file__).parents[3] / "docs" / "webhooks.md").read_text("utf-8")


def start(command: list[str], said: Path) -> subprocess.Popen[bytes]:
    """A program in the folder of `said`, the file with what it says."""
    with said.open("wb") as out:
        return subprocess.Popen(command, cwd=said.parent, stdout=out, stderr=out)


def test_the_keys_of_a_target_are_documented() -> None:
    """The page's table has a row for each."""
    rows = re.findall(r"^\| `([^|]+)` \|", PAGE.partition("Key of a target")[2], re.MULTILINE)
    named = {name for row in rows for name in row.split("`, `")}
    assert named == {*TargetSettings.model_fields, "secret_file"}


@pytest.mark.parametrize("language", ["python", "js"])
async def test_the_receivers_of_the_guide(
    open_door: OpenDoor, tmp_path: Path, language: str
) -> None:
    """They take what the door sends, and refuse what another key signed."""
    (code,) = re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    port = free_port()
    program = tmp_path / f"receiver.{'py' if language == 'python' else 'cjs'}"
    program.write_text(code.replace("3000", str(port)))
    (tmp_path / "webhook-secret.txt").write_text(f"{SECRET}\n")
    runner = [sys.executable, "-W", "error"] if language == "python" else ["node"]
    said = tmp_path / "said"
    receiver = start([*runner, str(program)], said)
    url = f"http://127.0.0.1:{port}/"
    try:
        async with open_door(shop=url) as daemon:
            job = await submit(daemon)
            await until(lambda: said.read_text() == f"job.done {job.id}\n")
            await until(lambda: daemon.info()["transports"]["webhook"]["ok"])
        other = TargetSettings(url=url, secret=f"whsec_{'x' * 32}")  # type: ignore[arg-type]
        async with open_client(other) as client:
            with pytest.raises(FailedError, match="answers 401"):
                await client.post(wire.Message("id", b"{}"))
        assert said.read_text() == f"job.done {job.id}\n"
    finally:
        receiver.kill()
        receiver.wait()
