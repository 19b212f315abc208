"""A daemon in a process of its own, and what the tests do to its page in a real browser."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from PIL import Image
from playwright.sync_api import Browser, Page, sync_playwright

from vellumd.testing import free_port

ROOT = Path(__file__).parents[4]
PAPER = ROOT / "tests" / "fixtures" / "paper_engine"
AXE = ROOT / "build" / "axe" / "node_modules" / "axe-core" / "axe.min.js"
"""Where `make test` puts it."""
TAGS = ("wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice")
SHOTS = ROOT / "build" / "screenshots"
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--host-resolver-rules=MAP gpu-box.lan 127.0.0.1",
)  # fmt: skip
DESKTOP = {"width": 1280, "height": 800}
PHONE = {"width": 390, "height": 844}
START_S = 40.0


@contextmanager
def browsing() -> Iterator[Browser]:
    """Debian's Chromium."""
    program = shutil.which("chromium") or shutil.which("chromium-browser")
    assert program, "Chromium is missing: `make test` installs it as root; else install chromium"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=list(FLAGS))
        yield browser
        browser.close()


class House:
    """A daemon on `folder`; `options` are those of `vellumd serve`."""

    def __init__(self, folder: Path, *options: str, engine: str = "paper") -> None:
        self.folder = folder
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        paper = ["--engine.name", "paper", "--plugins.paper.enabled", "true"]
        name = paper if engine == "paper" else []
        self._command = [
            sys.executable, "-m", "vellumd", "serve", "--store.dir", str(folder / "data"),
            "--plugins.http.port", str(self.port), *name, *options,
        ]  # fmt: skip
        self.start()

    def start(self) -> None:
        """Start it, and wait until it answers."""
        path = os.pathsep.join([str(PAPER), os.environ.get("PYTHONPATH", "")])
        env = {**os.environ, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1"}
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(self._command, stdout=log, stderr=log, env=env)
        end = time.monotonic() + START_S
        while True:
            try:
                urllib.request.urlopen(f"{self.url}/healthz", timeout=5).close()
            except OSError:
                assert self._process.poll() is None, self.log()
                assert time.monotonic() < end, self.log()
                time.sleep(0.02)
            else:
                return

    def log(self) -> str:
        """What it said."""
        return (self.folder / "log").read_text("utf-8")

    def kill(self) -> None:
        """As a power cut does; `start` may follow."""
        self._process.kill()
        self._process.wait(10)

    def close(self) -> None:
        """Stop it in order."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            self._process.wait(30)

    def bytes(self, path: str, method: str = "GET", body: Any = None) -> bytes:
        """What the API answers to another client."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, method=method)
        with urllib.request.urlopen(request, timeout=30) as answer:
            found: bytes = answer.read()
            return found

    def json(self, path: str, method: str = "GET", body: Any = None) -> Any:
        """Likewise, as JSON."""
        return json.loads(self.bytes(path, method, body) or b"null")

    def jobs(self, query: str = "") -> list[Any]:
        """A page of jobs, newest first."""
        found: list[Any] = self.json(f"/v1/jobs{query}")["jobs"]
        return found

    def submit(self, prompt: str, picture: bytes | None = None, **fields: Any) -> Any:
        """A job of another client."""
        import base64

        images = [base64.b64encode(picture or png()).decode()]
        return self.json("/v1/jobs", "POST", {"images": images, "prompt": prompt, **fields})

    def rest(self) -> None:
        """Let nothing wait or run, so that the next test finds an open, idle queue."""
        for job in [*self.jobs("?status=queued"), *self.jobs("?status=running")]:
            self.json(f"/v1/jobs/{job['id']}/cancel", "POST")
        self.json("/v1/queue/resume", "POST")


def png(width: int = 64, height: int = 48, color: str | tuple[int, int, int] = "teal") -> bytes:
    """A picture in one colour."""
    file = io.BytesIO()
    Image.new("RGB", (width, height), color).save(file, "PNG")
    return file.getvalue()


def photo(width: int = 320, height: int = 240, tone: int = 90) -> bytes:
    """A picture with something in it."""
    left = Image.linear_gradient("L").resize((width, height))
    picture = Image.merge(
        "RGB", (left, left.point(lambda v: v * 3 // 4), left.point(lambda v: tone))
    )
    file = io.BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()


def file(name: str, data: bytes, type: str = "image/png") -> Any:
    """As a file chooser hands it over."""
    return {"name": name, "mimeType": type, "buffer": data}


def add(page: Page, *pictures: bytes) -> None:
    """Choose pictures, and wait until the daemon has them."""
    before = page.locator(".tile").count()
    files = [file(f"photo-{before + n}.png", data) for n, data in enumerate(pictures, start=1)]
    page.set_input_files("#pick input", files)
    page.wait_for_function(
        "n => document.querySelectorAll('.tile .foot small').length === n", arg=before + len(files)
    )


def send(page: Page, prompt: str, *pictures: bytes) -> str:
    """Make an edit with the page's form; the job's id."""
    if pictures:
        add(page, *pictures)
    page.wait_for_selector("dialog", state="detached")  # while it closes, what is typed is lost
    page.fill("#prompt", prompt)
    with page.expect_response(lambda got: got.url.endswith("/v1/jobs")) as got:
        page.click("#submit")
    job = got.value.json()
    assert "id" in job, job
    page.wait_for_selector(f".job .prompt:text-is({json.dumps(prompt)})")
    return str(job["id"])


def shoot(page: Page, name: str) -> None:
    """Keep how the page looks, for people who have made the folder."""
    if SHOTS.is_dir():
        page.screenshot(path=SHOTS / f"{name}.png", animations="disabled")


def findings(page: Page, rules: list[str] | None = None) -> list[str]:
    """What axe-core calls serious or critical on the page as it is, by `rules` or all of them."""
    assert AXE.exists(), "axe-core is missing: `make test` installs it"
    if not page.evaluate("'axe' in window"):
        page.evaluate(AXE.read_text("utf-8"))
    only = {"type": "rule", "values": rules} if rules else {"type": "tag", "values": list(TAGS)}
    found = page.evaluate("only => axe.run({resultTypes: ['violations'], runOnly: only})", only)
    return [
        f"{one['id']} ({one['impact']}): {node['html'][:160]} {node['failureSummary']}"
        for one in found["violations"]
        if one["impact"] in ("serious", "critical")
        for node in one["nodes"]
    ]
