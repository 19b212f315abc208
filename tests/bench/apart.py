"""A bench's script in a process of its own, so that what is paid once is paid each time."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any


def told(module: str, *arguments: object) -> dict[str, Any]:
    """The figures that `module` prints as its last line. Raises `RuntimeError` where it fails.

    `arguments` are its command's.
    """
    command = [sys.executable, "-m", module, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found
