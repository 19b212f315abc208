"""The guides as the daemon shows them, and the samples of docs/http.md, run as they are written."""

from __future__ import annotations

import asyncio
import html
import io
import re
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from PIL import Image

from tests.plugins.http.conftest import Door, OpenDoor
from vellumd.testing import DaemonProcess, free_port
from vellumd.testing.contract import picture_of, shows_edit
from vellumd_http import guide

PAGE = guide.read("http")


def samples(language: str) -> list[str]:
    """Code blocks of docs/http.md in one language."""
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a daemon with the stand-in."""
    port = free_port()
    process = DaemonProcess(tmp_path_factory.mktemp("daemon"), "http", {"port": port})
    process.start()
    yield f"http://127.0.0.1:{port}"
    process.close()


Run = Callable[[list[str], str], str]


@pytest.fixture
def run(daemon: str, tmp_path: Path) -> Run:
    """Run a sample in a folder with a photo; what it says."""
    (tmp_path / "photo.png").write_bytes(picture_of("one"))

    def run(command: list[str], code: str) -> str:
        code = code.replace(guide.WRITTEN, daemon)
        file = tmp_path / f"sample{'.mjs' if command[0] == 'node' else ''}"
        file.write_text(code)
        done = subprocess.run(
            [*command, str(file)], cwd=tmp_path, capture_output=True, text=True, timeout=60,
            check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return run


def test_curl(run: Run, tmp_path: Path) -> None:
    """A picture at once, a job with its result in two formats, and its events."""
    at_once, job, events = samples("bash")
    shell = ["bash", "-eu", "-o", "pipefail"]
    run(shell, at_once)
    assert shows_edit((tmp_path / "out.png").read_bytes(), "one")
    run(shell, job)
    assert shows_edit((tmp_path / "result.png").read_bytes(), "one")
    small = (tmp_path / "result.jpg").read_bytes()
    assert Image.open(io.BytesIO(small)).format == "JPEG" and len(small) <= 100_000
    assert re.findall(r"^event: (queued|done)$", run(shell, events), re.MULTILINE) == [
        "queued", "done",
    ]  # fmt: skip


def test_python(run: Run, tmp_path: Path) -> None:
    """Two edits of a picture that was sent once."""
    (code,) = samples("python")
    said = run([sys.executable, "-W", "error"], code).splitlines()
    assert len(said) == 2
    for line in said:
        job, status, _ = line.split()
        assert status == "done" and shows_edit((tmp_path / f"{job}.png").read_bytes(), "one")


async def test_javascript(run: Run, tmp_path: Path, open_door: OpenDoor) -> None:
    """A job with its progress, from an engine that takes its time."""
    (code,) = samples("js")
    async with open_door(engine={"step_s": 0.05}) as door:
        said = await asyncio.to_thread(run, ["node"], code.replace(guide.WRITTEN, door.url))
    *steps, end = said.splitlines()
    assert end == "done 64 48" and "step 8 of 8" in steps
    assert shows_edit((tmp_path / "out.png").read_bytes(), "one")


async def test_guides_are_shown_with_the_readers_address(door: Door) -> None:
    """In a page that loads nothing from outside, linked from all others."""
    async with door.ask("GET", "/docs") as got:
        routes = await got.text()
    for name in guide.GUIDES:
        assert f'href="/docs/{name}"' in routes
        async with door.ask("GET", f"/docs/{name}") as got:
            assert got.status == 200 and got.content_type == "text/html"
            assert "default-src 'none'" in got.headers["Content-Security-Policy"]
            text = await got.text()
        assert "src=" not in text and guide.WRITTEN not in text
    async with door.ask("GET", "/docs/http") as got:
        assert f"-o out.png {door.url}/generate" in await got.text()
    for name in ("nothing", "..%2Fsecurity", "security"):
        problem = await door.json("GET", f"/docs/{name}", 404)
        assert problem["code"] == "not_found"


@pytest.mark.parametrize("name", guide.GUIDES)
def test_nothing_of_a_guide_is_lost(name: str) -> None:
    """Every word is there, every sample letter by letter, and no mark of Markdown is left."""
    source = re.sub(r"<!--.*?-->", "", guide.read(name), flags=re.DOTALL)
    shown = guide.page(source, guide.WRITTEN)
    body = shown.partition("<main>")[2]
    code = [html.unescape(one) for one in re.findall(r"<pre><code>(.*?)</code>", body, re.DOTALL)]
    fenced = re.findall(r"^( *)```\w*\n(.*?)^ *```", source, re.MULTILINE | re.DOTALL)
    assert code == [textwrap.dedent(one) if indent else one for indent, one in fenced]
    text = re.sub(r"^ *```.*?^ *```", "", source, flags=re.MULTILINE | re.DOTALL)
    text = re.sub(r"\]\([^)]*\)", " ", text)
    plain = html.unescape(re.sub(r"<[^>]+>", " ", body))
    words = set(re.findall(r"\w{3,}", text))
    links = {word for target in guide.GUIDES for word in (target, "md")}
    assert words - set(re.findall(r"\w{3,}", plain)) <= links
    prose = re.sub(r"<(pre|code)>.*?</\1>", "", body, flags=re.DOTALL)
    assert not re.search(r"\*\*|\]\(|```|^\|", prose, re.MULTILINE)


def test_markdown_is_escaped() -> None:
    """What looks like HTML in a guide is text."""
    shown = guide.page(
        "# A\n\n<b> & `<i>`\n\n```text\n<u>\n```\n\n| a | b\\|c |\n|---|---|\n| 1 | 2 |", ""
    )
    assert "<p>&lt;b&gt; &amp; <code>&lt;i&gt;</code></p>" in shown
    assert "<pre><code>&lt;u&gt;\n</code></pre>" in shown
    assert "<tr><th>a<th>b|c<tr><td>1<td>2</table>" in shown
