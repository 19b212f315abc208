"""The webhook door keeps what every door promises, as far as one can that takes no requests.

Jobs come by HTTP; the receiver answers a message when the contract confirms the reply, and
fetches the picture by the link in it.
"""

from __future__ import annotations

import base64
import json
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from tests.plugins.webhook.receiver import OK, SECRET, Answer, Call, Receiver
from vellumd.testing import Refused, Reply, TransportContract, free_port

REPLY_S = 4.0


class TestWebhook(TransportContract):
    """What comes in is the HTTP door's, which has a contract of its own."""

    plugin = "webhook"

    test_a_duplicate_is_the_same_job = None
    test_a_bad_picture_is_refused = None
    test_a_kill_while_sending = None

    def settings(self, folder: Path) -> dict[str, object]:
        self.port = free_port()
        self.jobs: dict[str, str] = {}
        self.confirmed: dict[str, threading.Event] = {}
        self.came: list[tuple[int, Call]] = []
        self.rubbish: list[Answer] = []
        self.receiver = Receiver(self.answer)
        (folder / "secret").write_text(SECRET + "\n")
        target = {"url": self.receiver.url, "secret_file": str(folder / "secret")}
        return {"targets": {"told": target}}

    def others(self) -> dict[str, dict[str, object]]:
        return {
            "plugins.http": {"enabled": True, "port": self.port},
            "daemon": {"public_url": f"http://127.0.0.1:{self.port}"},
        }

    def hang_up(self) -> None:
        for event in self.confirmed.values():
            event.set()
        self.receiver.close()

    # the target's part

    def answer(self, call: Call) -> Answer:
        """Wait until the contract confirms; now and then, say what is no answer."""
        assert call.is_signed()
        if self.rubbish:
            return self.rubbish.pop()
        self.came.append((self.daemon.pid, call))
        self.confirmed.setdefault(call.job, threading.Event()).wait()
        return OK

    # the sender's part

    def send(self, key: str, picture: bytes, prompt: str) -> None:
        edit = {"images": [base64.b64encode(picture).decode()], "prompt": prompt}
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}/v1/jobs",
            json.dumps(edit).encode(),
            {"Content-Type": "application/json", "Idempotency-Key": key},
        )
        try:
            with urllib.request.urlopen(request, timeout=5) as answer:
                self.jobs[key] = json.load(answer)["id"]
        except urllib.error.HTTPError as error:
            raise Refused(json.load(error)["code"]) from None

    def receive(self, key: str) -> Reply:
        if key not in self.jobs:  # accepted, but the daemon died before it said so
            self.find(key)
        told = self.message(self.jobs[key])
        assert told["type"] == f"job.{told['data']['status']}"
        job = told["data"]
        if job["error"]:
            return Reply(job["id"], code=job["error"]["code"])
        with urllib.request.urlopen(job["results"][0]["url"], timeout=5) as answer:
            return Reply(job["id"], answer.read())

    def find(self, key: str) -> None:
        """Its id, where there is one job."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/v1/jobs", timeout=5) as answer:
            (job,) = json.load(answer)["jobs"]
        self.jobs[key] = job["id"]

    def message(self, job_id: str) -> Any:
        """What the daemon that runs now has said of a job."""
        end = time.monotonic() + REPLY_S
        while time.monotonic() < end:
            for pid, call in list(self.came):
                if (pid, call.job) == (self.daemon.pid, job_id):
                    assert call.id == job_id
                    return call.json
            time.sleep(0.005)
        raise TimeoutError("not told")

    def confirm(self, key: str) -> None:
        self.confirmed[self.jobs[key]].set()

    def send_rubbish(self) -> None:
        """Answers that are none: the messages come again."""
        self.rubbish = [b"\xff\xfe\r\n\r\n", (500, {"Content-Type": "text/html"}, b"<p>" * 9999)]
