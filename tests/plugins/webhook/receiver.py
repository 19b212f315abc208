"""A service that is told by webhooks: it keeps what came and answers as a test wants."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import hmac
import json
import ssl
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

SECRET = "whsec_" + base64.b64encode(b"k" * 32).decode()


@dataclass
class Call:
    """One post; `path` with its query."""

    path: str
    headers: dict[str, str]
    body: bytes
    at: float = field(default_factory=time.monotonic)

    @property
    def json(self) -> Any:
        """What it says."""
        return json.loads(self.body)

    @property
    def id(self) -> str:
        """The message's."""
        return self.headers["webhook-id"]

    @property
    def job(self) -> str:
        """The job's."""
        return str(self.json["data"]["id"])

    def is_signed(self, secret: str = SECRET) -> bool:
        """Whether the signature is right, computed as the specification says."""
        key = base64.b64decode(secret.removeprefix("whsec_"))
        head = f"{self.id}.{self.headers['webhook-timestamp']}.".encode()
        signature = base64.b64encode(hmac.new(key, head + self.body, hashlib.sha256).digest())
        fresh = abs(time.time() - int(self.headers["webhook-timestamp"])) < 60
        return fresh and self.headers["webhook-signature"] == f"v1,{signature.decode()}"


Answer = tuple[int, dict[str, str], bytes] | bytes
"""Status, headers and body; or bytes that go out as they are."""
OK: Answer = (204, {}, b"")


class Receiver:
    """`answer` is called in a thread of the call's own, and may wait. `tls` makes it https."""

    def __init__(
        self, answer: Callable[[Call], Answer] = lambda call: OK, tls: ssl.SSLContext | None = None
    ) -> None:
        self.calls: list[Call] = []
        self.answer = answer
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                headers = {name.lower(): value for name, value in self.headers.items()}
                call = Call(self.path, headers, body)
                receiver.calls.append(call)
                with contextlib.suppress(OSError):
                    self.tell(receiver.answer(call))

            def tell(self, answer: Answer) -> None:
                if isinstance(answer, bytes):
                    self.wfile.write(answer)
                    self.close_connection = True
                    return
                status, headers, body = answer
                self.send_response(status)
                for name, value in {"Content-Length": str(len(body)), **headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *args: object) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, *args: object) -> None:
                """Clients hang up; that is theirs."""

        self._server = Server(("127.0.0.1", 0), Handler)
        self.port = self._server.server_port
        self.url = f"http{'s' if tls else ''}://127.0.0.1:{self.port}/hook"
        if tls:
            self._server.socket = tls.wrap_socket(
                self._server.socket, server_side=True, do_handshake_on_connect=False
            )
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def close(self) -> None:
        """Stop listening."""
        self._server.shutdown()
        self._server.server_close()

    def of(self, job_id: str) -> list[Call]:
        """What came about a job."""
        return [call for call in list(self.calls) if call.job == job_id]
