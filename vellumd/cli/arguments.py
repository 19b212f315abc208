"""Arguments that several commands share."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_daemon(parser: argparse.ArgumentParser) -> None:
    """The arguments that say which daemon to talk to, and with which key."""
    parser.add_argument("--url", help="the daemon's address (default: the one of store.dir)")
    parser.add_argument("--key", help="the daemon's key")
    parser.add_argument("--key-file", type=Path, metavar="FILE", help="file that holds the key")
