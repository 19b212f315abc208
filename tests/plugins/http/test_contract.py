"""The HTTP door keeps what every door promises. Its results wait to be fetched."""

from __future__ import annotations

import base64
import http.client
import json
import socket
from pathlib import Path

from vellumd.testing import Refused, Reply, TransportContract, free_port


class TestHttp(TransportContract):
    """A sender with an idempotency key that asks for its result until it is there."""

    plugin = "http"
    # Nothing is owed over HTTP: no reply is pushed, so none can be confirmed.
    test_a_confirmed_reply_is_no_longer_owed = None

    def settings(self, folder: Path) -> dict[str, object]:
        self.port = free_port()
        self.jobs: dict[str, str] = {}
        return {"port": self.port}

    def send(self, key: str, picture: bytes, prompt: str) -> None:
        edit = {"images": [base64.b64encode(picture).decode()], "prompt": prompt}
        status, body = self.ask("POST", "/v1/jobs", json.dumps(edit), {"Idempotency-Key": key})
        answer = json.loads(body)
        if status not in (200, 202):  # 200: sent before, and done
            raise Refused(answer["code"])
        self.jobs[key] = answer["id"]

    def receive(self, key: str) -> Reply:
        job_id = self.jobs[key]
        self.ask("GET", f"/v1/jobs/{job_id}", headers={"Prefer": "wait=20"})
        status, body = self.ask("GET", f"/v1/jobs/{job_id}/result")
        if status == 200:
            return Reply(job_id, body)
        return Reply(job_id, code=json.loads(body)["code"])

    def confirm(self, key: str) -> None:
        """There is nothing to confirm."""

    def send_rubbish(self) -> None:
        for rubbish in (b"\xff\xfe\r\n\r\n", b"POST /v1/jobs HTTP/1.1\r\nHost: x\r\n\r\n{"):
            with socket.create_connection(("127.0.0.1", self.port), 5) as connection:
                connection.sendall(rubbish)
                assert connection.recv(100).startswith(b"HTTP/1.")
        for body in ("{", "[]", '{"images": 1}'):
            status, _ = self.ask("POST", "/v1/jobs", body)
            assert status == 400

    def ask(
        self, method: str, path: str, body: str | None = None, headers: dict[str, str] | None = None
    ) -> tuple[int, bytes]:
        """Status and body of one request on a connection of its own."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            connection.request(method, path, body, headers or {})
            answer = connection.getresponse()
            return answer.status, answer.read()
        except http.client.HTTPException:
            raise ConnectionError("hung up before an answer came") from None
        finally:
            connection.close()
