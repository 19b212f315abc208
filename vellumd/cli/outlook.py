"""What `vellumd doctor` says of a model on this machine's card: what runs, how long edits take.

Asks the engine in a process of its own, which tries what the card can multiply and plans its
memory, and reads no weights.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator

from vellumd import platform
from vellumd.cli import checks, client
from vellumd.hookspecs import Check
from vellumd.settings import Settings

COMMAND = [sys.executable, "-m", "vellumd.engine", "plan"]
TOO_LARGE = (
    "larger than card and host have left, so edits may fail; an artefact needs less "
    "(`vellumd convert`), and other programs' memory may be freed"
)
PLAN_S = 180
"""Seconds for imports and probes, of which Triton compiles some."""


def outlook(settings: Settings) -> Iterator[Check]:
    """Recipe, attention, memory plan and expected seconds; nothing without a card.

    Nothing either where a daemon runs on the same data folder: it holds the card, so that a plan
    for what is left of it would mislead, and tells its own at `/v1/capabilities`.
    """
    if not platform.nvidia_driver() or client.announced(settings):
        return
    try:
        if checks.torch_says()[1] is None:
            return  # told by `checks.card`
        order = settings.engine.model_dump_json()
        done = subprocess.run([*COMMAND, order], capture_output=True, timeout=PLAN_S, check=True)
        found = json.loads(done.stdout.splitlines()[-1])
    except (subprocess.SubprocessError, ValueError, IndexError, OSError):
        yield Check(False, "the engine cannot plan: `vellumd serve` says more in its log")
        return
    if "error" in found:
        yield Check(False, found["error"])
        return
    yield Check(True, f"recipe {found['recipe']}, attention {found['attention']}")
    for name, why in found["refused"].items():
        yield Check(True, f"note: {name} does not run here ({why})")
    small = "" if found["fits"] else f"{TOO_LARGE}: "
    yield Check(found["fits"], f"memory plan: {small}{found['plan']}")
