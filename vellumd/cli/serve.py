"""`vellumd serve`: the daemon in the foreground."""

from __future__ import annotations

import argparse

from vellumd.cli.main import load_settings


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
    from vellumd import daemon, platform

    platform.more_files()
    return int(daemon.run(loaded.settings, loaded.warnings))
