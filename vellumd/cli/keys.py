"""`vellumd keys`: the named keys that open this daemon's doors."""

from __future__ import annotations

import argparse
import sys

from vellumd.cli.main import OK, Refused, load_settings

ACTIONS = ("list", "add", "remove")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What to do, with which key."""
    parser.add_argument("action", nargs="?", choices=ACTIONS, default="list", help="default: list")
    parser.add_argument("name", nargs="?", metavar="NAME", help="whose key it is, e.g. phone")


def run(args: argparse.Namespace) -> int:
    """List, make or take back keys; a running daemon sees it at once."""
    settings = load_settings(args).settings
    from vellumd.keys import FILE, Keyring

    folder = settings.store.dir
    known, ring = folder.exists(), Keyring(folder / FILE)
    if args.action == "list":
        for key in ring.keys:
            print(f"{key.name:<24} {key.created}")
        return OK
    if args.name is None:
        raise Refused(f"Say which: vellumd keys {args.action} NAME.")
    if args.action == "add":
        print(ring.add(args.name))
        note = (
            "Shown this once; send it as `Authorization: Bearer KEY`, or open the daemon's address "
            f"with /#key=KEY behind it in a browser. It opens the daemon on {folder}"
        )
        unknown = ", where none has run yet; --store.dir names another folder"
        print(f"{note}{'' if known else unknown}.", file=sys.stderr)
    else:
        ring.remove(args.name)
        print(f"{args.name} removed")
    return OK
