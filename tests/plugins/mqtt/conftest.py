"""A broker, a daemon with the MQTT door, and a sender."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.plugins.mqtt.broker import Broker
from tests.plugins.mqtt.house import House
from tests.plugins.mqtt.sender import Sender


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Broker]:
    """A broker that keeps what it has acknowledged."""
    made = Broker(tmp_path)
    yield made
    made.close()


@pytest.fixture
def make_house(tmp_path: Path, broker: Broker) -> Iterator[Callable[..., House]]:
    """Make a daemon at the broker and start it; keywords are the door's settings.

    `more` are keys of other sections, `sender` is one that is there already. What they saw is
    printed at the end, for a test that failed.
    """
    made: list[House] = []

    def make(more: Any = None, sender: Sender | None = None, **settings: object) -> House:
        made.append(House(tmp_path, broker, settings, sender, more))
        return made[-1]

    yield make
    for house in made:
        print(house.story())
        house.close()


@pytest.fixture
def house(make_house: Callable[..., House]) -> House:
    """A daemon with the default settings, started, and a sender of MQTT 5."""
    return make_house()


@pytest.fixture
def old_sender(broker: Broker) -> Iterator[Sender]:
    """A sender of MQTT 3.1.1."""
    made = Sender(broker.port, five=False)
    yield made
    made.close()
