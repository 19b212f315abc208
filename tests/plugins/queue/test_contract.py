"""The queue door keeps what every door promises; the sender is an old queue server."""

from __future__ import annotations

import base64
from collections.abc import Callable
from pathlib import Path

from tests.plugins.queue.old_server import OK, Answer, Call, OldServer
from vellumd import errors
from vellumd.testing import Refused, Reply, TransportContract

LOST_S = 5.0
"""Seconds after which a job that was given away counts as lost with the daemon that had it."""


class TestQueue(TransportContract):
    """A server that gives a job each time it is put in, and knows by the first heartbeat
    that it was taken over. A result that nobody confirmed is answered with 503."""

    plugin = "queue"

    def settings(self, folder: Path) -> dict[str, object]:
        self.confirmed: set[str] = set()
        self.old = OldServer()
        self.old.rules["POST /api/queue/result"] = self.take_result
        return {"url": self.old.url, "heartbeat": 60, "worker": "contract"}

    def send(self, key: str, picture: bytes, prompt: str) -> None:
        image = base64.b64encode(picture).decode()
        before = len(self.told(key))
        if not any(isinstance(job, dict) and job.get("id") == key for job in self.old.jobs):
            self.old.offer({"id": key, "image": image, "prompt": prompt})
        if (self.daemon.folder / "hold").exists():
            return  # a busy daemon pulls nothing: the server keeps it
        self.wait(lambda: len(self.told(key)) > before)
        code = self.told(key)[-1].json.get("code", "internal")
        if errors.BY_CODE[code].status < 500:
            raise Refused(code)

    def receive(self, key: str) -> Reply:
        before = len(self.answers(key))
        self.wait(lambda: len(self.answers(key)) > before)
        answer = self.answers(key)[-1].json
        picture = base64.b64decode(answer.get("image", ""))
        return Reply("", picture, answer.get("code", ""))

    def confirm(self, key: str) -> None:
        before = len(self.answers(key))
        self.confirmed.add(key)
        self.wait(lambda: len(self.answers(key)) > before)

    def send_rubbish(self) -> None:
        self.old.offer(b"\xff")
        self.old.offer({"id": "rubbish", "images": 7, "prompt": []})

    def hang_up(self) -> None:
        self.old.close()

    def wait(self, happened: Callable[[], bool]) -> None:
        """Until something is so, unless the daemon is gone or has lost what it was given."""
        self.old.wait(lambda: happened() or not self.daemon.alive, LOST_S)
        if not happened():
            raise ConnectionError

    def told(self, key: str) -> list[Call]:
        """What came about a job: signs of life and answers."""
        calls = [call for call in self.old.calls if call.method == "POST"]
        return [call for call in calls if call.json["id"] == key]

    def answers(self, key: str) -> list[Call]:
        """The results of a job."""
        return [call for call in self.told(key) if call.path == "/api/queue/result"]

    def take_result(self, call: Call) -> Answer:
        """Confirmed or not."""
        known = call.json["id"] in self.confirmed
        return OK if known else (503, {"Retry-After": "0"}, b"")
