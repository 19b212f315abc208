"""The command `vellumd`: finds the subcommand, reads the settings, tells errors."""

from __future__ import annotations

import argparse
import importlib
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from vellumd import __version__, platform
from vellumd.errors import ConfigError, VellumError

if TYPE_CHECKING:
    from vellumd.sources import Loaded

COMMANDS = {
    "serve": "run the daemon in the foreground",
    "edit": "edit pictures with the running daemon, or without one",
    "convert": "make a model's transformer ready: FP8 with scales, LoRAs inside, less to load",
    "jobs": "list, show, cancel, retry and delete jobs of the running daemon; pause and resume",
    "fetch": "fetch a model from its makers, after showing size, licence and room",
    "keys": "list, add and remove the keys that open the daemon's doors",
    "plugins": "list the installed plugins and what they bring",
    "doctor": "check this machine, the model and the configuration",
    "bench": "measure how fast the transformer is on this machine",
    "init": "write a commented configuration, a service unit and Windows scripts into a folder",
}
"""Subcommands, each a module of this package, and what they do."""

UNSET = ("init",)
"""Subcommands that read no settings."""

HOW_TO_SET = "Any setting of docs/configuration.md can follow as --SECTION.KEY VALUE."

OK, FAILED, USAGE, UNAVAILABLE, CONFIG, INTERRUPTED = 0, 1, 2, 69, 78, 130
STUCK = platform.STUCK

EXIT_CODES = {
    OK: "done",
    FAILED: "an edit, a call or a check failed; the message says why",
    USAGE: "the command line is wrong",
    UNAVAILABLE: "no daemon answers",
    STUCK: "a plugin ended the daemon, or would not end with it; the log names it",
    CONFIG: "the configuration is wrong",
    INTERRUPTED: "interrupted by Ctrl+C",
}
"""Exit codes; 69, 70 and 78 as in BSD's sysexits.h."""

SETTING = re.compile(r"--([a-z][a-z0-9_]*(?:\.[A-Za-z0-9_-]+)+)(?:=(.*))?", re.DOTALL)
"""A setting on the command line: `--section.key VALUE` or `--section.key=VALUE`."""


class Unavailable(Exception):
    """No daemon answers where one was looked for; the text says what to do."""


class Refused(Exception):
    """The command could not be carried out; the text says why."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line `argv` and return its exit code."""
    platform.safe_console()
    try:
        code = run(list(sys.argv[1:] if argv is None else argv))
        sys.stdout.flush()
        return code
    except ConfigError as error:
        return tell(error.message, CONFIG)
    except VellumError as error:
        return tell(f"{error.message} {error.remedy}", FAILED)
    except Refused as error:
        return tell(str(error), FAILED)
    except Unavailable as error:
        return tell(str(error), UNAVAILABLE)
    except BrokenPipeError:  # the reader, e.g. head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OK
    except OSError as error:
        return tell(f"{error.filename or 'The system'}: {error.strerror}.", FAILED)
    except KeyboardInterrupt:
        return INTERRUPTED


def run(argv: list[str]) -> int:
    """Run `argv`; errors come out as exceptions."""
    words, settings = split_settings(argv)
    name = next((word for word in words if not word.startswith("-")), None)
    if name not in COMMANDS or words.index(name) > 0:
        top_parser().parse_args(words)  # ends with help, version or a complaint
    command = load_command(str(name))
    parser = command_parser(str(name), command)
    args = parser.parse_args(words[1:])
    if settings and name in UNSET:
        parser.error(f"unrecognized arguments: --{settings[0][0]}")
    args.overrides = settings
    return int(command.run(args))


def split_settings(argv: Sequence[str]) -> tuple[list[str], list[tuple[str, str]]]:
    """The words of a command line without the settings among them, and the settings.

    After `--` everything is a word. Raises `ConfigError` for a setting without value.
    """
    words: list[str] = []
    settings: list[tuple[str, str]] = []
    rest = iter(argv)
    for word in rest:
        if word == "--":
            return [*words, word, *rest], settings
        if not (found := SETTING.fullmatch(word)):
            words.append(word)
            continue
        value = found[2] if found[2] is not None else next(rest, None)
        if value is None:
            raise ConfigError(f"--{found[1]} needs a value: --{found[1]} VALUE.")
        settings.append((found[1], value))
    return words, settings


def top_parser() -> argparse.ArgumentParser:
    """The parser of `vellumd` itself: help, version, complaints."""
    commands = "\n".join(f"  {name:<9} {text}" for name, text in COMMANDS.items())
    codes = "\n".join(f"  {code:<4} {text}" for code, text in EXIT_CODES.items())
    parser = argparse.ArgumentParser(
        prog="vellumd",
        usage="vellumd COMMAND ... [--config FILE] [--SECTION.KEY VALUE ...]",
        description="An image-edit daemon that keeps Qwen-Image-Edit on one GPU for everyone.",
        epilog=f"commands (vellumd COMMAND --help tells more):\n{commands}\n\nexit codes:\n{codes}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("command", choices=list(COMMANDS), metavar="COMMAND", help="see below")
    parser.add_argument("--version", action="version", version=f"vellumd {__version__}")
    return parser


def load_command(name: str) -> ModuleType:
    """The module of a subcommand; only this one is imported."""
    return importlib.import_module(f"vellumd.cli.{name}")


def command_parser(name: str, command: ModuleType) -> argparse.ArgumentParser:
    """The parser of one subcommand."""
    does, reads = COMMANDS[name], name not in UNSET
    parser = argparse.ArgumentParser(
        prog=f"vellumd {name}",
        description=f"{does[0].upper()}{does[1:]}.",
        epilog=HOW_TO_SET if reads else None,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        conflict_handler="resolve",
    )
    command.add_arguments(parser)
    if reads:
        parser.add_argument("--config", type=Path, metavar="FILE", help="TOML file with settings")
    return parser


def load_settings(args: argparse.Namespace) -> Loaded:
    """The settings for a command, of all sources; raises `ConfigError`."""
    from vellumd import sources

    return sources.load(args.overrides, config=args.config, cwd=Path.cwd(), environ=os.environ)


def tell(message: str, code: int) -> int:
    """Print what went wrong; returns `code`."""
    for line in message.splitlines():
        print(f"vellumd: {line}", file=sys.stderr)
    return code
