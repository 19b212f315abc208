"""A daemon with the MQTT door at a real broker, and one sender there."""

from __future__ import annotations

import base64
import io
import os
import random
import sqlite3
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

from PIL import Image

from tests.plugins.mqtt.broker import Broker
from tests.plugins.mqtt.sender import WAIT_S, Sender
from vellumd.testing import DaemonProcess

STORY = 200
"""Lines of each log that are told when a test fails."""


class House:
    """All of them, running."""

    def __init__(
        self,
        folder: Path,
        broker: Broker,
        settings: Mapping[str, object],
        sender: Sender | None = None,
        more: Mapping[str, Mapping[str, object]] | None = None,
    ) -> None:
        self.broker = broker
        self.sender = sender or Sender(broker.port)
        self.daemon = DaemonProcess(folder, "mqtt", {"port": broker.port, **settings}, more)
        self.daemon.start()
        self.online()

    def close(self) -> None:
        """End daemon and sender."""
        self.sender.close()
        self.daemon.close()

    def online(self) -> None:
        """Wait until the daemon has said that it is there, last of all that it said."""
        state = f"{self.sender.base}/state"

        def is_online() -> bool:
            told = [got.payload for got in list(self.sender.got) if got.topic == state]
            return bool(told) and told[-1] == b"online"

        wait(is_online, "the daemon to be online")

    def told(self, **numbers: int) -> None:
        """Wait until the daemon has said so of its queue."""
        queue = f"{self.sender.base}/queue"
        self.sender.until(lambda got: got.topic == queue and numbers.items() <= got.json.items())

    def answer(self, job_id: str | None = None) -> dict[str, Any]:
        """The next answer to an edit; or the first one to the sender's `job_id`."""
        if job_id is None:
            return self.sender.next("response/edit").json
        topic = f"{self.sender.base}/response/edit"
        found = self.sender.until(
            lambda got: got.topic == topic and got.json.get("client_job_id") == job_id
        )
        return found.json

    def story(self) -> str:
        """What each of them saw, for who has to find out why something did not come."""
        folder = self.daemon.folder
        rows = "SELECT job_id, state, code, attempts, reply FROM deliveries ORDER BY number"
        parts = {
            "sender": self.sender.story(),
            "daemon's deliveries": [str(row) for row in self.rows(rows)],
            "jobs": _lines(folder / "history"),
            "daemon": _lines(folder / "log"),
            "broker": _lines(self.broker.folder / "log"),
        }
        told = [line for name, lines in parts.items() for line in (f"-- {name}", *lines[-STORY:])]
        return "\n".join(told)

    def confirmed(self) -> None:
        """Wait until the broker has confirmed all answers, so that none comes again."""
        owed = "SELECT number FROM deliveries WHERE state IN ('waiting', 'pending')"
        wait(lambda: not self.rows(owed), "the broker to confirm the answers")

    def rows(self, query: str) -> list[tuple[Any, ...]]:
        """What the store says, read beside the running daemon."""
        file = self.daemon.folder / "data" / "jobs.sqlite"
        with closing(sqlite3.connect(f"file:{file}?mode=ro", uri=True)) as store:
            return store.execute(query).fetchall()


def _lines(file: Path) -> list[str]:
    return file.read_text("utf-8", "replace").splitlines() if file.exists() else []


def wait(happened: Callable[[], bool], what: str, seconds: float = WAIT_S) -> None:
    """Wait for something; raises `TimeoutError` naming it."""
    end = time.monotonic() + seconds
    while not happened():
        if time.monotonic() > end:
            raise TimeoutError(f"waited in vain for {what}")
        time.sleep(0.005)


def png(width: int = 48, height: int = 32, colour: object = "teal") -> bytes:
    """A small picture."""
    file = io.BytesIO()
    Image.new("RGB", (width, height), colour).save(file, "PNG")  # type: ignore[arg-type]
    return file.getvalue()


def noise(size: int, seed: int = 1) -> bytes:
    """A square PNG of about `size` bytes, which no encoder makes smaller."""
    side = max(16, int((size / 3) ** 0.5))
    pixels = random.Random(seed).randbytes(side * side * 3)
    file = io.BytesIO()
    Image.frombytes("RGB", (side, side), pixels).save(file, "PNG", compress_level=0)
    return file.getvalue()


def opened(data: bytes | str) -> Image.Image:
    """A picture of an answer."""
    data = base64.b64decode(data) if isinstance(data, str) else data
    image = Image.open(io.BytesIO(data))
    image.load()
    return image


def seed() -> int:
    """A fresh seed, printed so that a failure can be run again."""
    chosen = int(os.environ.get("VELLUMD_TEST_SEED", random.randrange(10**6)))
    print(f"VELLUMD_TEST_SEED={chosen}")
    return chosen
