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
        image = base64.b64encode(picture).decode()
        answer = self.ask(key, "accepted", id=key, image=image, prompt=prompt)
        if "refused" in answer:
            raise Refused(answer["refused"]["code"])

    def receive(self, key: str) -> Reply:
        reply = self.ask(key, "job")
        picture = base64.b64decode(reply.get("image", ""))
        return Reply(reply["job"], picture, reply.get("error", {}).get("code", ""))

    def confirm(self, key: str) -> None:
        self.ask(key, "", confirm=key)

    def send_rubbish(self) -> None:
        for rubbish in (b"\xff\n", b"[" * 100_000 + b"\n", b"{}\n", b'{"from": 1, "image": 2}\n'):
            with socket.create_connection(("127.0.0.1", self.port), 5) as connection:
                connection.sendall(rubbish)
                assert b"bad_request" in connection.makefile("rb").readline()

    def ask(self, sender: str, wanted: str, **order: Any) -> dict[str, Any]:
        """Send a line on a connection of its own; the first answer that has `wanted`."""
        with socket.create_connection(("127.0.0.1", self.port), 5) as connection:
            connection.sendall(json.dumps({"from": sender, **order}).encode() + b"\n")
            if not wanted:
                connection.shutdown(socket.SHUT_WR)
            for line in connection.makefile("rb"):
                answer: dict[str, Any] = json.loads(line)
                if wanted in answer or "refused" in answer:
                    return answer
        if wanted:
            raise ConnectionError("hung up before an answer came")
        return {}
