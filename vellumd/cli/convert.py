"""`vellumd convert`: make a model's transformer ready once, so that it loads and edits better."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from vellumd.cli.main import FAILED, load_settings, tell
from vellumd.models import SCALE_MAX


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What to convert, where to, and with which LoRAs inside."""
    parser.add_argument(
        "source",
        nargs="?",
        metavar="SRC",
        help="model folder or file, or a name that fetch knows (default: engine.model)",
    )
    parser.add_argument(
        "target", nargs="?", type=Path, metavar="DST",
        help="folder of the artefact (default: one below engine.artifact_dir)",
    )  # fmt: skip
    parser.add_argument(
        "--lora", action="append", default=[], metavar="NAME[=SCALE]", type=scaled,
        help="LoRA to fuse, a role or a file; may be given several times",
    )  # fmt: skip


def run(args: argparse.Namespace) -> int:
    """Convert in a process of its own, which may import torch; its exit code."""
    from vellumd import catalogue

    engine = load_settings(args).settings.engine
    if args.source:
        named = args.source in ("demo", *catalogue.MODELS)
        source = args.source if named else str(Path(args.source).absolute())
        engine = engine.model_copy(update={"model": source})
    wanted: dict[str, Any] = {
        "engine": engine.model_dump(mode="json"),
        "target": str(args.target.absolute()) if args.target else None,
        "loras": args.lora,
    }
    command = [sys.executable, "-m", "vellumd.engine", "convert", json.dumps(wanted)]
    code = subprocess.run(command, check=False).returncode
    if code < 0:  # it had no chance to say anything
        text = f"The conversion was ended by signal {-code}; where memory runs out, Linux sends 9."
        return tell(f"{text} The same command goes on where it was.", FAILED)
    return code


def scaled(text: str) -> tuple[str, float]:
    """Name and scale of a LoRA as it is written: `NAME` or `NAME=SCALE`."""
    name, _, written = text.rpartition("=")
    try:
        scale = float(written)
    except ValueError:
        return text, 1.0  # a name alone, or a file with = in its name
    if not 0 < abs(scale) <= SCALE_MAX:
        raise argparse.ArgumentTypeError(f"a scale is from -{SCALE_MAX} to {SCALE_MAX}, not 0")
    return (name, scale) if name else (text, 1.0)
