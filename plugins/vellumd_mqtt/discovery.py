"""What Home Assistant is told, so that it shows this daemon by itself: pure functions.

Topics and keys are those of its MQTT discovery
(https://www.home-assistant.io/integrations/mqtt/#mqtt-discovery).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from vellumd_mqtt.topics import Topics

PREFIX = "homeassistant"


def configs(topics: Topics, info: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Topic and configuration of each entity: last result, queue, pause, connection."""
    node = topics.base.replace("/", "_")
    device = {
        "identifiers": [node],
        "name": node.replace("_", " "),
        "manufacturer": "vellumd",
        "model": info["model"],
        "sw_version": info["version"],
    }
    common = {"device": device, "origin": {"name": "vellumd", "sw_version": info["version"]}}
    available = {
        "availability_topic": topics.state,
        "payload_available": "online",
        "payload_not_available": "offline",
    }
    entities: dict[str, tuple[str, dict[str, Any]]] = {
        "last": (
            "image",
            {"name": "Last result", "image_topic": topics.last, "content_type": "image/jpeg"},
        ),
        "queue": (
            "sensor",
            {
                "name": "Queue",
                "state_topic": topics.queue,
                "value_template": "{{ value_json.queued + value_json.running }}",
                "unit_of_measurement": "jobs",
                "state_class": "measurement",
                "icon": "mdi:tray-full",
            },
        ),
        "pause": (
            "switch",
            {
                "name": "Pause",
                "command_topic": topics.ask("pause"),
                "payload_on": "ON",
                "payload_off": "OFF",
                "qos": 1,
                "state_topic": topics.queue,
                "value_template": "{{ 'ON' if value_json.paused else 'OFF' }}",
                "icon": "mdi:pause",
            },
        ),
    }
    for name, (kind, entity) in entities.items():
        yield (
            f"{PREFIX}/{kind}/{node}/{name}/config",
            {**entity, **available, **common, "unique_id": f"{node}_{name}"},
        )
    yield (
        f"{PREFIX}/binary_sensor/{node}/online/config",
        {
            "name": "Connection",
            "state_topic": topics.state,
            "payload_on": "online",
            "payload_off": "offline",
            "device_class": "connectivity",
            "unique_id": f"{node}_online",
            **common,
        },
    )
