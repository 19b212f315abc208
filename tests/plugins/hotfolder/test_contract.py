"""The hot folder keeps what every door promises."""

from __future__ import annotations

import os
import re
import time
from pathlib import Path
from typing import Any

from PIL import Image

from tests.plugins.hotfolder.conftest import files_of
from vellumd.testing import Refused, Reply, TransportContract
from vellumd_hotfolder.__main__ import make

END_S = 15.0
TAKEN_S = 15.0
PAUSE_S = 0.01


class TestHotfolder(TransportContract):
    plugin = "hotfolder"

    # Who takes a file out of the outbox tells nobody: it is delivered when it lies there.
    test_a_confirmed_reply_is_no_longer_owed: Any = None

    def test_what_was_taken_out_does_not_come_again(self) -> None:
        """What lay in the outbox is not put there again, whenever the daemon was stopped."""
        self.daemon.start()
        self.hand_in("one")
        self.reply("one")
        (self.root / "outbox" / "one.png").unlink()
        assert self.daemon.stop(END_S) == 0
        self.daemon.start()
        self.hand_in("two")
        self.reply("two")
        assert [file.name for file in (self.root / "outbox").iterdir()] == ["two.png"]

    def settings(self, folder: Path) -> dict[str, object]:
        self.root = folder / "root"
        make(self.root, None, None)  # a daemon makes it a moment after its doors are open
        times = {"settle_s": 0.05, "scan_s": 0.2, "incomplete_s": 0.1}
        return {"root": self.root, "duplicates": "skip", **times}

    def send(self, key: str, picture: bytes, prompt: str) -> None:
        inbox = self.root / "inbox"
        self.put(inbox / f"{key}.txt", prompt.encode())
        self.put(inbox / f"{key}.png", picture)
        end = time.monotonic() + TAKEN_S
        while not self.taken(key):
            if time.monotonic() > end or not self.daemon.alive:
                raise TimeoutError
            time.sleep(PAUSE_S)
        error = self.root / "failed" / f"{key}.error.txt"
        if error.exists() and prompt != "fail":
            raise Refused(code_in(error.read_text("utf-8")))

    def put(self, file: Path, data: bytes) -> None:
        """Write aside and rename, as careful writers do, and two of them at once can."""
        aside = file.with_name(f".{file.name}.{os.urandom(4).hex()}")
        aside.write_bytes(data)
        aside.rename(file)

    def taken(self, key: str) -> bool:
        """Whether the picture has become a job, or was done or refused before."""
        if (self.root / "inbox" / f"{key}.png").exists():
            return False
        known = self.daemon.jobs()
        held = [path for path in files_of(self.root / ".work") if path.endswith(f"/{key}.png")]
        return all(path.split("/")[1] in known for path in held)

    def receive(self, key: str) -> Reply:
        error = self.root / "failed" / f"{key}.error.txt"
        if error.exists():
            return Reply("", code=code_in(error.read_text("utf-8")))
        picture = (self.root / "outbox" / f"{key}.png").read_bytes()
        with Image.open(self.root / "outbox" / f"{key}.png") as result:
            told = re.search(r"[0-9a-f]{8}-[0-9a-f-]{27}", str(result.info))
        assert told, "the result does not say which job made it"
        return Reply(told[0], picture)

    def confirm(self, key: str) -> None:
        """Nobody asks."""

    def send_rubbish(self) -> None:
        inbox = self.root / "inbox"
        (inbox / "link.png").symlink_to("/etc/hostname")
        os.mkfifo(inbox / "pipe.png")
        (inbox / "folder.png").mkdir()
        (inbox / "broken.json").write_bytes(b"[" * 100_000)
        (inbox / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
        (inbox / "other.mov").write_bytes(b"film")


def code_in(sentence: str) -> str:
    """The code that NAME.error.txt ends with."""
    found = re.search(r"\(code: (\w+)", sentence)
    assert found, sentence
    return found[1]
