"""`vellumd init`: a commented configuration, a service unit and Windows scripts to start from."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

from vellumd.cli.main import OK, Refused

PACKAGE = Path(__file__).parents[1]
FOLDERS = (PACKAGE / "config", PACKAGE.parent / "config")
"""Where the templates are: in the wheel, in a checkout."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Where to write."""
    parser.add_argument(
        "dir", type=Path, metavar="DIR", help="folder that gets config/ with all templates"
    )


def run(args: argparse.Namespace) -> int:
    """Copy the templates to DIR/config; never over an existing file."""
    from vellumd.sources import CONFIG_FILE

    left = []
    for name, text in templates():
        file = args.dir / "config" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        try:
            with file.open("xb") as new:
                new.write(text)
        except FileExistsError:
            left.append(f"{file} existed already and was left as it is.")
        else:
            print(f"{file} written")
    if left:
        raise Refused("\n".join(left))
    print(f"start with: vellumd serve --config {args.dir / CONFIG_FILE}")
    return OK


def templates() -> Iterator[tuple[Path, bytes]]:
    """The files of config/, by their path in it."""
    folder = next(folder for folder in FOLDERS if folder.is_dir())
    for file in sorted(folder.rglob("*")):
        if file.is_file():
            yield file.relative_to(folder), file.read_bytes()
