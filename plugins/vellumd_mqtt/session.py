"""What the broker's packet ids mean: which message a redelivery repeats."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from pathlib import Path

from vellumd import new_job_id
from vellumd_mqtt.connection import Connection, Message


class Session:
    """The broker's session with us, in a file: packet ids mean something in it alone.

    A broker that has lost the session counts from the start, and one that was killed counts on
    from where it last wrote: the same id and the same words can be another message. But what
    it redelivers it sends in answer to our connection, before it answers what we send (MQTT 5,
    4.4 and 4.6; Mosquitto does). So whenever we have subscribed, all ids that did not come
    again are free: messages are known by another name from then on.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self._name = self._before = ""
        self._known: dict[str, str] = {}
        """Name of each message that can come again, by id and words."""
        self._came: dict[str, str] = {}
        """The same of those that came on `_on` before we had subscribed."""
        self._on: Connection | None = None
        self._subscribed: Connection | None = None
        self._read()

    def renew(self) -> None:
        """The broker does not know the session: it begins anew. Raises `OSError`."""
        self._change({})

    def subscribed(self, connection: Connection) -> None:
        """The broker has answered there: what did not come again by now, does not."""
        self._subscribed = connection
        with suppress(OSError):  # a full disk takes no request, so the old names do
            self._change(self._came if connection is self._on else {})

    def key(self, connection: Connection, message: Message) -> str:
        """What `message` and its redeliveries have in common. Asked once for each, in order."""
        said, name = f"{message.mid}:{message.digest}", self._name
        early = connection is not self._subscribed
        if not message.dup:
            self._known.pop(said, None)
        elif said in self._known:
            name = self._known[said]
        elif not early:  # a broker that redelivers late
            name = self._before
        if early and message.qos:
            if connection is not self._on:
                self._on, self._came = connection, {}
            self._came[said] = name
        return f"dup:{name}:{said}"

    def _change(self, known: dict[str, str]) -> None:
        name, before = new_job_id(), self._name
        new = self._file.with_suffix(".new")
        new.write_text(json.dumps({"name": name, "before": before, "known": known}), "ascii")
        os.replace(new, self._file)
        self._name, self._before, self._known = name, before, known

    def _read(self) -> None:
        text = self._file.read_text("ascii", "replace").strip() if self._file.exists() else ""
        try:
            told = json.loads(text)
            self._name, self._before, self._known = told["name"], told["before"], told["known"]
        except (ValueError, TypeError, KeyError):  # a name alone, as the first versions wrote it
            self._name = text
        if not self._name:
            self._change({})
