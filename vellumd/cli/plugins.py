"""`vellumd plugins`: what is installed, what it brings, and how the open doors are."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from vellumd.cli.main import OK, load_settings

if TYPE_CHECKING:
    from vellumd.settings import Settings


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Which daemon's doors to show."""
    from vellumd.cli import arguments

    arguments.add_daemon(parser)


def run(args: argparse.Namespace) -> int:
    """Print every installed plugin, what the enabled ones bring, and the running doors."""
    settings = load_settings(args).settings
    from vellumd import plugins

    loaded = plugins.load(settings.enabled_plugins())
    for plugin in loaded.plugins:
        state = "enabled" if plugin.enabled else "not enabled"
        print(f"{plugin.name:<12} {plugin.distribution} {plugin.version}, {state}")
    print(f"transports: {', '.join(sorted(loaded.transports)) or 'none'}")
    print(f"engines: {', '.join(sorted(loaded.engines)) or 'none'}")
    for name, door in doors(settings, args).items():
        print(f"{name:<12} {'open' if door['ok'] else 'NOT OPEN'}: {door['text']}")
    return OK


def doors(settings: Settings, args: argparse.Namespace) -> dict[str, Any]:
    """The doors of the daemon that runs; none where none runs."""
    from vellumd.cli import client

    daemon = client.find(settings, args)
    return dict(daemon.get("/v1/capabilities")["doors"]) if daemon else {}
