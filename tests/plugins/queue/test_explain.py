"""`python -m vellumd_queue explain` says how a saved answer is read."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path

import pytest

from tests.plugins.queue.conftest import job
from vellumd_queue.__main__ import explain, main
from vellumd_queue.plugin import QueueSettings

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
    assert "without an id; it has 'task'" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("config", "server", "said"),
    [
        ("[plugins.queue]\nurl = 'http://q'\nmap = { next = 3 }", "", "plugins.queue.map.next: "),
        ("[plugins.queue]\nmap = { felds = {} }", "", "plugins.queue.map.felds: Extra inputs"),
        ("[plugins.queue.servers.lab]\nurl = 'http://q'", "shop", "no section [plugins.queue.serv"),
        ("[plugins.queue.servers.lab]\nurl = 'http://q'", "", "add --server lab"),
        ("plugins = 3", "", "no section [plugins.queue]"),
        ("[plugins.queue]\nurl = 'http://elsewhere'", "", "refused: bad_request: images: a URL"),
        ("[plugins.queue\n", "", "cannot be read: "),
    ],
)
def test_a_configuration_that_does_not_fit_is_named(
    config: str, server: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is not passed over in silence, as if there were none; it may begin with a BOM."""
    file = tmp_path / "vellumd.toml"
    file.write_text(config, "utf-8-sig")
    answer = saved(tmp_path, {"id": 1, "image": "http://server/1.png", "prompt": "p"})
    chosen = ["--server", server] if server else []
    assert main(["explain", answer, "--config", str(file), *chosen]) == 1
    assert said in capsys.readouterr().out


def test_an_id_is_shown_as_it_is_sent(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In a path it is quoted."""
    file = tmp_path / "vellumd.toml"
    file.write_text("[plugins.queue.map]\nresult = 'PUT /{id}'", "utf-8")
    answer = saved(tmp_path, {"id": "a/b?", "image": "http://server/1.png", "prompt": "p"})
    assert main(["explain", answer, "--config", str(file)]) == 0
    assert "result   PUT /a%2Fb%3F {" in capsys.readouterr().out


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


@pytest.mark.parametrize("section", re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL))
def test_the_examples_are_valid(section: str) -> None:
    """Each configuration on the page is one that the door takes."""
    shown = tomllib.loads(section)["plugins"]["queue"]
    shown.pop("token_file", None)  # a file of the reader's
    assert QueueSettings.model_validate(shown).named()


def test_the_mapped_example_reads_what_it_says() -> None:
    """The page's mapping fits the server of its example."""
    (shown,) = re.findall(r"```toml\n([^`]*queue\.map.*?)```", PAGE, re.DOTALL)
    server = QueueSettings.model_validate(tomllib.loads(shown)["plugins"]["queue"])
    task = {"uuid": "a", "params": {"pics": ["/1.png"], "text": "p"}}
    lines = list(explain(json.dumps({"data": {"tasks": [task]}}).encode(), server))
    assert 'job      id "a"' in lines
    assert 'image 1  by URL: "/1.png"' in lines
    assert lines[-2].startswith("result   PUT /v2/tasks/a/output")
