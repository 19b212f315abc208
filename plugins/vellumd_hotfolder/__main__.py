"""`python -m vellumd_hotfolder init DIR`: a folder that is ready to be used."""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
from pathlib import Path

from vellumd import platform
from vellumd_hotfolder.root import PARTS

README = """\
Put pictures into the folder "inbox". Finished ones appear in "outbox".

One picture       IMG_1.jpg, and what to do with it in IMG_1.txt
                  (without IMG_1.txt: what prompt.txt in "inbox" says)
Many, the same    a folder with the pictures and a file each.txt
Several as one    a folder with up to 4 pictures and a file prompt.txt

STATUS.txt says how far it is, REPORT.csv lists every picture.
Originals go to "done", or to "failed" with a text that says why.
To try one again, move it back into "inbox".
"""


def main(arguments: list[str] | None = None) -> int:
    """Run the command; the exit code."""
    platform.safe_console()
    parser = argparse.ArgumentParser(prog="python -m vellumd_hotfolder", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    init = commands.add_parser("init", help="make a hot folder")
    init.add_argument("dir", type=Path, metavar="DIR")
    init.add_argument("--prompt", help="what to do with pictures that come without a text")
    init.add_argument("--preset", help="preset of all pictures")
    options = parser.parse_args(arguments)
    try:
        make(options.dir, options.prompt, options.preset)
    except OSError as error:
        print(f"{options.dir} cannot be made: {error.strerror}. Choose another.", file=sys.stderr)
        return 1
    print(f"{options.dir} is ready. Start the daemon with it:")
    print(f"  vellumd serve --plugins.hotfolder.root {_quoted(options.dir)}")
    print("or keep it in config/vellumd.toml:")
    print(f"  [plugins.hotfolder]\n  root = {_toml(options.dir)}")
    return 0


def make(folder: Path, prompt: str | None, preset: str | None) -> None:
    """A hot folder with a README.txt; what is there already stays. Raises OSError."""
    for part in PARTS:
        (folder / part).mkdir(parents=True, exist_ok=True)
    files = {folder / "README.txt": README}
    if prompt:
        files[folder / "inbox" / "prompt.txt"] = f"{prompt}\n"
    if preset:
        files[folder / "inbox" / "_preset.toml"] = (
            f"preset = {json.dumps(preset, ensure_ascii=False)}\n"
        )
    for file, text in files.items():
        if not file.exists():
            file.write_text(text, "utf-8", newline="\r\n")


def _quoted(path: Path) -> str:
    """As this system's shell takes it."""
    text = str(path.resolve())
    return subprocess.list2cmdline([text]) if platform.WINDOWS else shlex.quote(text)


def _toml(path: Path) -> str:
    """As TOML takes it; in single quotes, where backslashes mean nothing, if it can be."""
    text = str(path.resolve())
    if text.isprintable() and "'" not in text:
        return f"'{text}'"
    return json.dumps(text, ensure_ascii=False)


if __name__ == "__main__":
    sys.exit(main())
