"""A daemon's HTTP API in a thread, as far as the command line uses it."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from PIL import Image

from vellumd import errors
from vellumd.models import EditRequest, ImageRef

KEY = "k3y"
BROKEN = b"no picture"
"""An upload that is refused."""
PROGRESS = {"phase": "denoise", "image": 1, "images": 1, "step": 1, "steps": 2, "eta_s": 3.2}


class Api(ThreadingHTTPServer):
    """Accepts jobs and has them done at once; prompts that start with `fail` fail."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.jobs: dict[str, dict[str, Any]] = {}
        self.inputs: dict[str, bytes] = {}
        self.key: str | None = None
        self.held = ""

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.server_port}"

    def add(self, fields: dict[str, Any]) -> dict[str, Any]:
        """Accept a job, checked as the daemon checks it."""
        given = {**fields, "images": [self._ref(name) for name in fields["images"]]}
        if "mask" in given:
            given["mask"] = self._ref(given["mask"])
        request = EditRequest.parse(given)
        job_id = f"job-{len(self.jobs) + 1}"
        failed = (request.prompt or "").startswith("fail")
        kind = request.output.format if request.output else "png"
        self.jobs[job_id] = {
            "id": job_id,
            "status": "failed" if failed else "done",
            "source": "http",
            "batch": request.batch,
            "created": "2026-01-02T03:04:05.000Z",
            "request": {"prompt": request.prompt},
            "results": []
            if failed
            else [self._result(n, kind) for n in range(1, (request.n or 1) + 1)],
            "warnings": [{"code": "demo_model", "message": errors.WARNINGS["demo_model"]}],
            "error": {"code": "out_of_memory", "message": "No room.", "retryable": False}
            if failed
            else None,
        }
        return self.jobs[job_id]

    def _ref(self, name: str) -> ImageRef:
        assert name.removeprefix("sha256:") in self.inputs
        return ImageRef(sha256=name.removeprefix("sha256:"), width=8, height=8)

    def _result(self, n: int, kind: str | None) -> dict[str, Any]:
        media = {"png": "image/png", "same": "image/jpeg"}.get(kind or "png", f"image/{kind}")
        return {"n": n, "type": media, "width": 8, "height": 6, "seed": 41 + n}


class Handler(BaseHTTPRequestHandler):
    """Routes of interfaces the command line calls."""

    server: Api

    def log_message(self, format: str, *args: Any) -> None:
        """Keep the tests' output clean."""

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        parts = url.path.strip("/").split("/")
        if parts == ["healthz"]:
            self._json(200, {"ok": True})
        elif not self._allowed():
            return
        elif parts == ["v1", "capabilities"]:
            doors = {"http": {"ok": True, "text": "listens"}, "mail": {"ok": False, "text": "down"}}
            self._json(200, {"note": "pictures are noise", "doors": doors})
        elif parts == ["v1", "jobs"]:
            query = {k: v[0] for k, v in parse_qs(url.query).items()}
            cursor = int(query.pop("cursor", "0"))
            jobs = [
                j for j in self.server.jobs.values() if all(j[k] == v for k, v in query.items())
            ]
            more = str(cursor + 1) if cursor + 1 < len(jobs) else None
            self._json(200, {"jobs": jobs[cursor : cursor + 1], "next": more})
        elif parts[2] not in self.server.jobs:
            self._problem(errors.NotFound("There is no such job."))
        elif parts[-1] == "events":
            self._events()
        elif parts[-2] == "result":
            self._send(200, "image/png", f"picture {parts[-1]}".encode())
        else:
            self._json(200, self.server.jobs[parts[2]])

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        parts = self.path.strip("/").split("/")
        if not self._allowed():
            return
        if parts == ["v1", "inputs"] and body == BROKEN:
            self._problem(errors.BadImage("The picture's file is cut off."))
        elif parts == ["v1", "inputs"]:
            sha256 = f"{len(self.server.inputs):064x}"
            self.server.inputs[sha256] = body
            self._json(201, {"sha256": sha256, "width": 8, "height": 8})
        elif parts[:2] == ["v1", "queue"]:
            self.server.held = "paused" if parts[2] == "pause" else ""
            queue = {"queued": 3, "running": 1, "held": self.server.held}
            self._json(200, {"queue": queue, "engine": {}})
        elif parts == ["v1", "jobs"]:
            try:
                self._json(202, self.server.add(json.loads(body)))
            except errors.VellumError as error:
                self._problem(error)
        else:
            job = self.server.jobs[parts[2]]
            self._json(200, {**job, "status": {"cancel": "cancelled", "retry": "queued"}[parts[3]]})

    def do_DELETE(self) -> None:
        del self.server.jobs[self.path.rpartition("/")[2]]
        self._send(204, "text/plain", b"")

    def _allowed(self) -> bool:
        if self.server.key in (None, self.headers.get("Authorization", "").removeprefix("Bearer ")):
            return True
        self._problem(errors.Unauthorized("The key is missing or wrong."))
        return False

    def _events(self) -> None:
        steps = f"event: step\ndata: {json.dumps({'type': 'step', 'data': PROGRESS})}\n\n"
        self._send(200, "text/event-stream", f":\n\n{steps}event: done\ndata: {{}}\n\n".encode())

    def _json(self, status: int, value: Any) -> None:
        self._send(status, "application/json", json.dumps(value).encode())

    def _problem(self, error: errors.VellumError) -> None:
        fields = {"detail": error.public()["message"], "code": error.code}
        self._send(error.status, "application/problem+json", json.dumps(fields).encode())

    def _send(self, status: int, kind: str, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@pytest.fixture
def api() -> Iterator[Api]:
    """A running API."""
    with Api() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with two pictures, and no settings from outside."""
    for variable in ("XDG_CONFIG_HOME", "XDG_DATA_HOME", "APPDATA", "LOCALAPPDATA"):
        monkeypatch.setenv(variable, str(tmp_path / "user"))
    monkeypatch.chdir(tmp_path)
    for name in ("a.jpg", "b.jpg"):
        Image.new("RGB", (20, 20), "red").save(tmp_path / name)
    return tmp_path
