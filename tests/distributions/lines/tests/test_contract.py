"""The lines door keeps what every door promises."""

import base64
import json
import socket
from pathlib import Path
from typing import Any

from vellumd.testing import Refused, Reply, TransportContract, free_port


class TestLines(TransportContract):
    plugin = "lines"

    def settings(self, folder: Path) -> dict[str, object]:
        self.port = free_port()
        return {"port": self.port}

    def send(self, key: str, picture: bytes, prompt: str) -> None:
        answer = self.ask(id=key, image=base64.b64encode(picture).decode(), prompt=prompt)
        if "error" in answer:
            raise Refused(answer["error"]["code"])

    def receive(self, key: str) -> Reply:
        reply = self.ask(wait=key)
        if "error" in reply:
            return Reply("", code=reply["error"]["code"])
        return Reply(reply["job"], base64.b64decode(reply["image"]))

    def confirm(self, key: str) -> None:
        assert self.ask(confirm=key) == {"confirmed": key}

    def send_rubbish(self) -> None:
        for rubbish in (b"\xff", b"[" * 100_000, b"{}", b'{"id": "1", "image": 2}'):
            assert self.say(rubbish)["error"]["code"] == "bad_request"

    def ask(self, **request: str) -> dict[str, Any]:
        return self.say(json.dumps(request).encode())

    def say(self, line: bytes) -> dict[str, Any]:
        """Send a line on a connection of its own; the answer."""
        with socket.create_connection(("127.0.0.1", self.port), 5) as connection:
            connection.sendall(line + b"\n")
            answer = connection.makefile("rb").readline()
        if not answer:
            raise ConnectionError("hung up before an answer came")
        return dict(json.loads(answer))
