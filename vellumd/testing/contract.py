"""What every door promises its senders, as tests that an author inherits."""

from __future__ import annotations

import hashlib
import io
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest
from PIL import Image, ImageOps

from vellumd import errors
from vellumd.testing.process import PAUSE_S, WAIT_S, DaemonProcess

END_S = 5.0
"""Seconds in which a daemon with `daemon.stop_s = 0.5` has ended; asking twice takes longer."""
TOLERANCE = 12
"""Levels of 255 by which a door that re-encodes pictures may change a colour."""


class Refused(Exception):
    """The door said no; `code` is one of `vellumd.errors`."""

    def __init__(self, code: str) -> None:
        super().__init__(code)
        self.code = code


@dataclass(frozen=True)
class Reply:
    """What a sender got for a request: a picture's bytes, or the code of an error."""

    job_id: str
    picture: bytes = b""
    code: str = ""


class TransportContract(ABC):
    """Tests of a door against a real daemon; the author plays the sender.

    A subclass called `Test...` names the door's entry point in `plugin` and writes the
    five methods below with any blocking client. They raise `OSError` (`TimeoutError` and
    `ConnectionError` are such) when the other end is gone or silent: the contract kills
    daemons, and then tries again. A test that cannot apply to a door is taken out by
    `test_... = None` and a comment that says why.
    """

    plugin: ClassVar[str]
    daemon: DaemonProcess

    @abstractmethod
    def settings(self, folder: Path) -> dict[str, object]:
        """The door's section, the same after each restart; `folder` is the test's own."""

    @abstractmethod
    def send(self, key: str, picture: bytes, prompt: str) -> None:
        """Hand one request in; return once the door has said that it is accepted.

        The same `key` comes with the same request, sent again. Two threads do so at once
        in one test. Raises `Refused` when the door says no.
        """

    @abstractmethod
    def receive(self, key: str) -> Reply:
        """The next reply to the request `key`, without confirming it."""

    @abstractmethod
    def confirm(self, key: str) -> None:
        """Tell the door that the last reply has arrived; nothing where doors do not ask."""

    @abstractmethod
    def send_rubbish(self) -> None:
        """Hand in what is no request at all, as broken or hostile senders do."""

    def others(self) -> dict[str, dict[str, object]]:
        """Sections of the daemon's other doors, for one that needs them; asked after `settings`."""
        return {}

    def hang_up(self) -> None:  # noqa: B027 - optional
        """Close the sender's connections; called at the end of each test."""

    # the tests

    def test_a_request_is_answered(self) -> None:
        """An edit comes back, and it is the edit of this picture."""
        self.daemon.start()
        self.hand_in("one")
        self.hand_in("two")
        for key in ("two", "one"):
            assert shows_edit(self.reply(key).picture, key)
            self.confirm(key)

    def test_a_failed_edit_is_told(self) -> None:
        """A job that failed is answered by the code of its error."""
        self.daemon.start()
        self.hand_in("bad", "fail")
        assert self.reply("bad").code == "internal"

    @pytest.mark.parametrize("event", ["queued", "started", "done"])
    def test_a_kill_loses_nothing_and_doubles_nothing(self, event: str) -> None:
        """The daemon dies right after an event: the request is one job and is answered."""
        self.daemon.start()
        self.daemon.kill_at(event, self.hand_in_once)
        self.daemon.start()
        self.hand_in("one")
        assert shows_edit(self.reply("one").picture, "one")
        self.confirm("one")
        assert len(self.daemon.jobs()) == 1
        assert self.daemon.count("done") == 1
        assert self.daemon.count("executed") <= 2

    def test_a_kill_while_sending(self) -> None:
        """The daemon dies somewhere in a request: sent again it is one job all the same."""
        delays = (0.0, 0.003, 0.01, 0.05)
        for number, delay in enumerate(delays):
            self.daemon.start()
            sending = threading.Thread(target=self.hand_in_once, args=(str(number),))
            sending.start()
            time.sleep(delay)
            self.daemon.kill()
            sending.join(WAIT_S)
            assert self.daemon.kept() >= len(self.accepted), "an accepted request is lost"
        self.daemon.start()
        for number in range(len(delays)):
            self.hand_in(str(number))
            assert shows_edit(self.reply(str(number)).picture, str(number))
            self.confirm(str(number))
        assert len(self.daemon.jobs()) == self.daemon.count("done") == len(delays)

    def test_a_duplicate_is_the_same_job(self) -> None:
        """One request sent twice at once, and once more later, is edited once."""
        self.daemon.start()
        self.daemon.hold()
        senders = [threading.Thread(target=self.hand_in) for _ in range(2)]
        for sender in senders:
            sender.start()
        for sender in senders:
            sender.join(WAIT_S)
        self.daemon.release()
        assert shows_edit(self.reply("one").picture, "one")
        self.confirm("one")
        self.send("one", picture_of("one"), "invert")
        assert len(self.daemon.jobs()) == self.daemon.count("executed") == 1

    def test_an_unconfirmed_reply_comes_again(self) -> None:
        """Until the sender has confirmed it, the same bytes come again, also after a kill."""
        self.daemon.start()
        keys = ["one", "two"]
        for key in keys:
            self.hand_in(key)
        first = [self.reply(key) for key in keys]
        self.daemon.kill()
        self.daemon.start()
        assert [self.reply(key) for key in keys] == first
        assert all(reply.picture for reply in first)
        assert self.daemon.count("executed") == len(keys)

    def test_a_confirmed_reply_is_no_longer_owed(self) -> None:
        """Of two replies that were read, only the unconfirmed one waits for the next start."""
        self.daemon.start()
        for key in ("confirmed", "open"):
            self.hand_in(key)
            self.reply(key)
            if key == "confirmed":
                self.confirm(key)
        assert self.daemon.stop(WAIT_S) == 0
        assert self.daemon.owed() == 1

    def test_a_bad_picture_is_refused(self) -> None:
        """What is no picture is refused by a known code, and good requests go on."""
        self.daemon.start()
        with pytest.raises(Refused) as caught:
            self.send("bad", b"no picture at all", "invert")
        assert not errors.BY_CODE[caught.value.code].retryable
        assert not self.daemon.jobs()
        self.hand_in("one")
        assert shows_edit(self.reply("one").picture, "one")

    def test_rubbish_harms_nobody(self) -> None:
        """With rubbish between them, both requests are answered; it makes no job and no crash."""
        self.daemon.start()
        self.daemon.hold()
        self.hand_in("before")
        with suppress(OSError):  # a door may hang up on it
            self.send_rubbish()
        self.hand_in("after")
        self.daemon.release()
        for key in ("before", "after"):
            assert shows_edit(self.reply(key).picture, key)
        assert len(self.daemon.jobs()) == 2
        assert not self.daemon.crashed()

    def test_a_stop_is_quick_and_keeps_what_was_accepted(self) -> None:
        """With a request running and two waiting the daemon ends well; the next one does them."""
        keys = ["one", "two", "three"]
        self.daemon.start()
        self.daemon.hold()
        for key in keys:
            self.hand_in(key)
        assert self.daemon.stop(END_S) == 0
        self.daemon.release()
        self.daemon.start()
        for key in keys:
            assert shows_edit(self.reply(key).picture, key)
        assert len(self.daemon.jobs()) == len(keys)

    # what they are made of

    @pytest.fixture(autouse=True)
    def _daemon(self, tmp_path: Path) -> Iterator[None]:
        self.accepted: set[str] = set()
        settings = self.settings(tmp_path)
        self.daemon = DaemonProcess(tmp_path, self.plugin, settings, self.others())
        yield
        self.hang_up()
        self.daemon.close()

    def hand_in(self, key: str = "one", prompt: str = "invert") -> None:
        """Send until it is accepted, as a careful sender does."""
        end = time.monotonic() + WAIT_S
        while not self.hand_in_once(key, prompt):
            assert time.monotonic() < end, f"{key} was not accepted within {WAIT_S:.0f} s"
            time.sleep(PAUSE_S)

    def hand_in_once(self, key: str = "one", prompt: str = "invert") -> bool:
        """Send if it has not been accepted before; whether it is now."""
        if key not in self.accepted:
            try:
                self.send(key, picture_of(key), prompt)
                self.accepted.add(key)
            except OSError:
                pass
            except Refused as refusal:
                if not errors.BY_CODE[refusal.code].retryable:
                    raise
        return key in self.accepted

    def reply(self, key: str) -> Reply:
        """The next reply, asked for until it comes."""
        end = time.monotonic() + WAIT_S
        while time.monotonic() < end:
            with suppress(OSError):
                return self.receive(key)
            time.sleep(PAUSE_S)
        raise AssertionError(f"{key} was not answered within {WAIT_S:.0f} s")


def picture_of(key: str) -> bytes:
    """A PNG in one colour, another one for each key."""
    buffer = io.BytesIO()
    colour = tuple(hashlib.sha256(key.encode()).digest()[:3])
    Image.new("RGB", (64, 48), colour).save(buffer, "PNG")
    return buffer.getvalue()


def shows_edit(picture: bytes, key: str) -> bool:
    """Whether a reply's picture is the stand-in's edit of this key's picture."""
    with Image.open(io.BytesIO(picture)) as edit, Image.open(io.BytesIO(picture_of(key))) as asked:
        wanted = ImageOps.invert(asked).getpixel((32, 24))
        found = edit.convert("RGB").getpixel((32, 24))
        assert isinstance(wanted, tuple) and isinstance(found, tuple)
        near = all(abs(w - f) <= TOLERANCE for w, f in zip(wanted, found, strict=True))
        return near and edit.size == asked.size
