"""`python -m vellumd_queue explain` says how a saved answer is read."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.plugins.queue.conftest import job
from vellumd_queue.__main__ import main
from vellumd_queue.plugin import ANSWER, MapSettings, QueueSettings, ServerSettings

PAGE = (Path(__file__).parents[3] / "docs" / "queue.md").read_text("utf-8")


def saved(folder: Path, answer: object) -> str:
    """A file with an answer."""
    file = folder / "answer.json"
    file.write_text(json.dumps(answer), "utf-8")
    return str(file)


def test_a_job_is_explained(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its id, pictures, fields, what is ignored and what is sent back."""
    assert main(["explain", saved(tmp_path, job(7, num_steps=8, lease=1, prompt="눈"))]) == 0
    shown = capsys.readouterr().out
    assert shown.isascii()
    for part in ("id 7", "image 1", "steps    8", "ignored  lease", '"status": "done"', "failed"):
        assert part in shown


def test_a_mapping_is_used(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """That of the configuration, or of one of its servers."""
    names = "job = 'task'\nfields = { id = 'no' }\nanswer = { id = 'no' }\n"
    config = tmp_path / "vellumd.toml"
    config.write_text(f"[plugins.queue.servers.old.map]\n{names}", "utf-8")
    answer = saved(tmp_path, {"task": {"no": "a", "image": "/1.png", "prompt": "p"}})
    assert main(["explain", answer, "--config", str(config), "--server", "old"]) == 0
    assert '{"no": "a", "status": "done"' in capsys.readouterr().out
    assert main(["explain", answer]) == 1
    assert "without an id; it has task" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("answer", "said", "code"),
    [
        ({}, "the queue is empty", 0),
        ({"id": 1}, "no picture", 1),
        (job(num_steps="many"), "refused: bad_request: steps", 1),
        (job(image="?"), "refused: bad_request", 1),
        ("text", "no job: the server answers with a JSON str", 1),
    ],
)
def test_what_is_no_job_is_named(
    answer: object, said: str, code: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With an exit code that scripts can ask."""
    assert main(["explain", saved(tmp_path, answer)]) == code
    assert said in capsys.readouterr().out


def test_every_key_is_documented() -> None:
    """docs/queue.md has a row for each key, and one for each name of an answer."""
    keys = {*QueueSettings.model_fields, *ServerSettings.model_fields} - {"token"}
    keys |= {f"map.{name}" for name in MapSettings.model_fields} | {"token_file"}
    rows = set(re.findall(r"^\| `([a-z_.]+)` \|", PAGE, re.MULTILINE))
    assert keys - {"map"} == rows
    for name in ANSWER:
        assert f"`{name}`" in PAGE
