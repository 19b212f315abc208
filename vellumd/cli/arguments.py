"""Arguments that several commands share."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

KEY = re.compile("[!-~]+")
"""A key: other characters do not travel in HTTP's headers."""


def add_daemon(parser: argparse.ArgumentParser) -> None:
    """The arguments that say which daemon to talk to, and with which key."""
    parser.add_argument("--url", help="the daemon's address (default: the one of store.dir)")
    parser.add_argument("--key", type=key, help="the daemon's key")
    parser.add_argument("--key-file", type=Path, metavar="FILE", help="file that holds the key")


def key(text: str) -> str:
    """`text` if it can be a key; raises what argparse tells as a wrong command line."""
    if not KEY.fullmatch(text):
        raise argparse.ArgumentTypeError("a key has ASCII characters only, and no spaces")
    return text
