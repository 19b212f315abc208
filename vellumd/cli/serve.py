"""`vellumd serve`: the daemon in the foreground."""

from __future__ import annotations

import argparse
import shlex
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from vellumd import __version__
from vellumd.cli.main import load_settings

if TYPE_CHECKING:
    from vellumd.daemon import Daemon


class SettingsHelp(argparse.Action):
    """`--help` with every setting; the models are imported only when it is asked for."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        """Print the help and end."""
        from vellumd.cli import reference

        parser.epilog = f"settings and their defaults:\n{reference.command_line()}"
        parser.print_help()
        parser.exit()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Replace the plain help by one that lists the settings."""
    parser.add_argument(
        "-h", "--help", action=SettingsHelp, nargs=0, help="show this help with every setting"
    )


def run(args: argparse.Namespace) -> int:
    """Serve until told to stop."""
    loaded = load_settings(args)
    from vellumd import foreground, platform

    platform.more_files()
    return int(foreground.run(loaded.settings, loaded.warnings, greet))


def greet(daemon: Daemon) -> None:
    """Print what is open: address, model, folder, doors and one example."""
    url = next(iter(daemon.urls), "")
    model = f"{daemon.card.name} ({daemon.card.note})" if daemon.card.note else daemon.card.name
    lines = [
        f"vellumd {__version__} on {url or 'no address'}",
        f"  model  {model}",
        f"  data   {daemon.settings.store.dir}",
        f"  doors  {', '.join(daemon.plugins.transports) or 'none'}",
        *([f"  try    {example(daemon, url)}"] if url else []),
    ]
    for line in lines:
        print(line, flush=True)


def example(daemon: Daemon, url: str) -> str:
    """A command that sends a picture to this daemon: the model's own one, if it has one."""
    from vellumd import model_card

    image, prompt = "photo.jpg", "make it snow"
    if shown := daemon.card.example:
        image = from_here(model_card.home(daemon.settings.engine) / shown.image)
        prompt = shown.prompt
    return (
        f"curl -F {shlex.quote(f'images=@{image}')} -F prompt='{prompt}' -H 'Accept: image/png' "
        f"{key_header(daemon, url)}-o out.png {url}/generate"
    )


def key_header(daemon: Daemon, url: str) -> str:
    """How the example shows the key where one is needed; never the key itself."""
    if file := daemon.transports.key_files.get(url):
        return f'-H "Authorization: Bearer $(cat {shlex.quote(from_here(file))})" '
    return "-H 'Authorization: Bearer KEY' " if daemon.keys.keys else ""


def from_here(file: Path) -> str:
    """A path as short as it can be typed in the working directory."""
    with suppress(ValueError):
        file = file.relative_to(Path.cwd())
    return str(file)
