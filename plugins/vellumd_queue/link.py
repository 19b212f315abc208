"""What the parts of the door share about one server."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from vellumd import TransportContext
from vellumd_queue.backoff import Pace
from vellumd_queue.client import Client
from vellumd_queue.journal import Journal
from vellumd_queue.plugin import ServerSettings
from vellumd_queue.sender import Sender
from vellumd_queue.state import State


@dataclass(frozen=True)
class Link:
    """One server by its name in the configuration, and the ways to and from it."""

    name: str
    settings: ServerSettings
    context: TransportContext
    pace: Pace
    journal: Journal
    client: Client
    state: State
    sender: Sender
    taken: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when a job was taken over."""
