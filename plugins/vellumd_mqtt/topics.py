"""The topics of one instance, and what is a topic at all."""

from __future__ import annotations

from collections.abc import Iterable

PREFIX = "vellumd"
COMMANDS = ("cancel", "status", "pause", "resume", "unload")
OWN = ("request", "state", "info", "queue", "last", "progress")
"""Levels below an instance that are not for answers."""
LONGEST = 512
"""Bytes of the longest topic that answers go to; MQTT ends at 65,535."""


class Topics:
    """Every topic below `vellumd/<instance>`."""

    def __init__(self, instance: str) -> None:
        self.base = f"{PREFIX}/{instance}"
        self.state = f"{self.base}/state"
        self.info = f"{self.base}/info"
        self.queue = f"{self.base}/queue"
        self.last = f"{self.base}/last"
        self.requests = f"{self.base}/request/#"

    def request(self, topic: str) -> tuple[str, str]:
        """What a request's topic asks for, and the rest behind it: a preset's name."""
        verb, _, rest = topic.removeprefix(f"{self.base}/request/").partition("/")
        return verb, rest

    def ask(self, verb: str) -> str:
        """Where requests of this kind go."""
        return f"{self.base}/request/{verb}"

    def response(self, verb: str, reply_to: str | None = None) -> str:
        """Where requests of this kind are answered."""
        answers = f"{self.base}/response/{verb}"
        return f"{answers}/{reply_to}" if reply_to else answers

    def result(self, job_id: str, n: int = 1) -> str:
        """Where the bytes of a result go."""
        return f"{self.base}/result/{job_id}" + (f"/{n}" if n > 1 else "")

    def progress(self, job_id: str) -> str:
        """Where the steps of a job are told."""
        return f"{self.base}/progress/{job_id}"

    def may_answer_to(self, topic: str, prefixes: Iterable[str]) -> bool:
        """Whether a sender's response topic is one that answers may go to.

        An answer among the requests would be a request, here or at another daemon; and what
        vellumd says of itself is not for senders to say.
        """
        if not (is_name(topic) and any(topic.startswith(prefix) for prefix in prefixes)):
            return False
        first, *below = topic.split("/")
        return first != PREFIX or len(below) < 2 or below[1] not in OWN


def is_name(topic: str) -> bool:
    """Whether one can publish there: no wildcard, no control character, not the broker's own."""
    plain = topic.isprintable() and not any(mark in topic for mark in "+#")
    return plain and not topic.startswith("$") and 0 < len(topic.encode()) <= LONGEST
