"""An old queue server in a thread: it keeps what it was given and does as it is told."""

from __future__ import annotations

import json
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

Answer = tuple[int, dict[str, str], bytes]
EMPTY: Answer = (204, {}, b"")
OK: Answer = (200, {}, b"{}")
LOOK_S = 0.05
"""Seconds between two looks at what happens elsewhere."""


@dataclass(frozen=True)
class Call:
    """One request as it came."""

    method: str
    path: str
    query: str
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        """Its body."""
        return json.loads(self.body)


@dataclass
class OldServer:
    """`jobs` are given one by one; `rules` answer other paths, by method and path.

    A call of `holds` is noted and decided, but answered only when its event is set.
    """

    jobs: deque[Any] = field(default_factory=deque)
    calls: list[Call] = field(default_factory=list)
    rules: dict[str, Callable[[Call], Answer]] = field(default_factory=dict)
    holds: dict[str, threading.Event] = field(default_factory=dict)
    changed: threading.Condition = field(default_factory=threading.Condition)

    def __post_init__(self) -> None:
        owner = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def answer(self) -> None:
                owner.answer(self)

            do_GET = do_POST = do_PUT = answer  # noqa: N815

            def log_message(self, *_: object) -> None:
                """Keep the output of the tests clean."""

        class Quiet(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, *_: object) -> None:
                """A daemon that is killed hangs up; that is no news."""

        self.server = Quiet(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.02,))
        self.thread.start()

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        """Note a request and answer it."""
        assert "chunked" not in handler.headers.get("Transfer-Encoding", "")
        length = int(handler.headers.get("Content-Length") or 0)
        parts = urlsplit(handler.path)
        body = handler.rfile.read(length)
        call = Call(handler.command, parts.path, parts.query, dict(handler.headers), body)
        rule = self.rules.get(f"{call.method} {call.path}", self.usual)
        with self.changed:
            self.calls.append(call)
            status, headers, body = rule(call)
            self.changed.notify_all()
        if held := self.holds.get(f"{call.method} {call.path}"):
            held.wait()
        handler.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            handler.send_header(name, value)
        handler.end_headers()
        handler.wfile.write(body)

    def usual(self, call: Call) -> Answer:
        """What such servers do."""
        if call.path != "/api/queue/next":
            return OK
        return (200, {}, as_body(self.jobs.popleft())) if self.jobs else EMPTY

    def results(self, path: str = "/api/queue/result") -> list[Call]:
        """The results that were posted."""
        return [call for call in self.calls if call.path == path]

    def wait(self, happened: Callable[[], Any], seconds: float = 15) -> None:
        """Wait until something is so, be it of this server or not."""
        end = time.monotonic() + seconds
        with self.changed:
            while not self.changed.wait_for(happened, LOOK_S):
                if time.monotonic() > end:
                    raise TimeoutError

    def offer(self, job: Any) -> None:
        """Put a job into the queue."""
        with self.changed:
            self.jobs.append(job)

    def close(self) -> None:
        """Answer nothing more."""
        for held in self.holds.values():
            held.set()
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


def as_body(job: Any) -> bytes:
    """A job as bytes; bytes are taken as they are."""
    return job if isinstance(job, bytes) else json.dumps(job).encode()
