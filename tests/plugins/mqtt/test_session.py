"""Packet ids: a redelivery is known as long as it can come, and no longer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from vellumd_mqtt.connection import Message
from vellumd_mqtt.session import Session


class Line:
    """The broker's side of a session whose file outlives the daemon."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self.connect(restart=True)

    def connect(self, *, restart: bool = False) -> None:
        """A new connection, of a new daemon after a `restart`."""
        if restart:
            self.session = Session(self._file)
        self._connection: Any = object()

    def subscribe(self) -> None:
        """The broker confirms the subscription."""
        self.session.subscribed(self._connection)

    def send(self, mid: int, *, dup: bool = False, digest: str = "words", qos: int = 1) -> str:
        """The key of a message as it arrives."""
        message = Message("t", b"", qos, mid, dup, retain=False, digest=digest)
        return self.session.key(self._connection, message)


@pytest.fixture
def line(tmp_path: Path) -> Line:
    """A first connection, subscribed."""
    made = Line(tmp_path / "session")
    made.session.renew()
    made.subscribe()
    return made


@pytest.mark.parametrize("restart", [False, True])
def test_a_redelivery_is_known_for_as_long_as_it_comes(line: Line, restart: bool) -> None:
    """Over any number of connections that were lost before it was acknowledged."""
    key = line.send(7)
    for _ in range(3):
        line.connect(restart=restart)
        assert line.send(7, dup=True) == key
        line.subscribe()
        assert line.send(8) != line.send(7, dup=True, digest="others")
    line.connect(restart=restart)
    line.subscribe()  # it did not come again: the broker has forgotten it
    line.connect(restart=restart)
    assert line.send(7, dup=True) != key


def test_what_waited_at_the_broker_is_known_too(line: Line) -> None:
    """It comes before the subscription is confirmed, and is no redelivery yet."""
    line.connect()
    key = line.send(3)
    line.subscribe()
    line.connect(restart=True)
    assert line.send(3, dup=True) == key


def test_a_broker_that_redelivers_late(line: Line) -> None:
    """Behind the subscription's confirmation it is still taken for what came before it."""
    key = line.send(5)
    line.connect()
    line.subscribe()
    assert line.send(5, dup=True) == key
    assert line.send(5) != key


def test_a_full_disk_changes_nothing(line: Line, tmp_path: Path) -> None:
    """The names that are on the disk stay in use."""
    key = line.send(5)
    (tmp_path / "session.new").mkdir()
    line.connect()
    line.subscribe()
    assert line.send(5) == key


def test_the_file_of_an_older_version(tmp_path: Path) -> None:
    """It holds the name alone, under which its last messages are known."""
    (tmp_path / "session").write_text("old\n")
    line = Line(tmp_path / "session")
    assert line.send(5, dup=True) == "dup:old:5:words"
