"""`vellumd init`: a commented configuration to start from."""

from __future__ import annotations

import argparse
from pathlib import Path

from vellumd.cli.main import OK, Refused


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Where to write."""
    parser.add_argument("dir", type=Path, help="folder that gets config/vellumd.toml")


def run(args: argparse.Namespace) -> int:
    """Write DIR/config/vellumd.toml; never over an existing file."""
    from vellumd.cli import reference
    from vellumd.sources import CONFIG_FILE

    file = args.dir / CONFIG_FILE
    file.parent.mkdir(parents=True, exist_ok=True)
    try:
        with file.open("x", encoding="utf-8", newline="\n") as new:
            new.write(reference.toml())
    except FileExistsError:
        raise Refused(f"{file} exists already and was left as it is.") from None
    print(f"{file} written; start with: vellumd serve --config {file}")
    return OK
