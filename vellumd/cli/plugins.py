"""`vellumd plugins`: what is installed and what it brings."""

from __future__ import annotations

import argparse

from vellumd.cli.main import OK, load_settings


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """No arguments of its own."""


def run(args: argparse.Namespace) -> int:
    """Print every installed plugin, and what the enabled ones bring."""
    settings = load_settings(args).settings
    from vellumd import plugins

    loaded = plugins.load(settings.enabled_plugins())
    for plugin in loaded.plugins:
        state = "enabled" if plugin.enabled else "not enabled"
        print(f"{plugin.name:<12} {plugin.distribution} {plugin.version}, {state}")
    print(f"transports: {', '.join(sorted(loaded.transports)) or 'none'}")
    print(f"engines: {', '.join(sorted(loaded.engines)) or 'none'}")
    return OK
