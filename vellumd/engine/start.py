"""What happens before torch is imported: the model is looked at, and its bytes are fetched.

Importing torch, diffusers and transformers takes seconds. A model that cannot be loaded is
refused before them, and a cold disk is read while they run.
"""

from __future__ import annotations

import contextlib
import logging
import os
import tempfile
import threading
import time
from collections.abc import Iterable
from pathlib import Path

from vellumd import model_card, platform
from vellumd.protocol import Engine, Init
from vellumd.settings import EngineSettings

log = logging.getLogger(__name__)

COMPILED = {"TORCHINDUCTOR_CACHE_DIR": "inductor", "TRITON_CACHE_DIR": "triton"}
"""Variables of torch and Triton, and our folders for them."""
SHARE = 0.5
"""Part of the free memory that may be filled ahead: beyond, what came first would go again."""


def create(init: Init) -> Engine:
    """The engine that `init` asks for: what the built-in engine's import string names.

    Raises what `open_model` raises, before anything heavy is imported.
    """
    model = model_card.opened(EngineSettings.model_validate(init.settings))
    keep_compiled(init.cache)
    threading.Thread(target=fetch, args=[model.files], name="fetch", daemon=True).start()
    began = time.monotonic()
    from vellumd.engine import pipeline

    log.info("imports took %.1f s", time.monotonic() - began)
    return pipeline.create(init)


def keep_compiled(cache: Path) -> None:
    """Have what torch and Triton compile kept in `cache`, unless their own variables say where.

    Else it would lie in the system's folder for temporary files and be gone after a restart.
    """
    for name, folder in COMPILED.items():
        if name not in os.environ and (home := writable(cache / folder)) is not None:
            os.environ[name] = str(home)
    discard_lost(cache / COMPILED["TRITON_CACHE_DIR"])


def writable(folder: Path) -> Path | None:
    """`folder`, or a temporary one where nothing can be written there; None if nowhere.

    Without a place for its files Triton compiles nothing, and all edits would be slow.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except OSError as error:
        log.warning("nothing that is compiled can be kept for the next start: %s", error)
    try:
        return Path(tempfile.mkdtemp(prefix="vellumd-"))
    except OSError:
        return None


def discard_lost(folder: Path) -> None:
    """Remove files below `folder` that are empty or begin with zeros.

    A computer that loses its power leaves such ones of what was written last. Triton would fail at
    them in each start, and plain kernels stand in for those that fail.
    """
    for file in folder.rglob("*.*"):
        with contextlib.suppress(OSError):
            if file.read_bytes()[:1] in (b"", b"\0"):
                file.unlink()


def fetch(files: Iterable[Path]) -> None:
    """Have the system read `files` into its cache, in order, as far as memory allows."""
    left = int(platform.memory().available * SHARE)
    for file in files:
        if left <= 0:
            return
        left -= platform.read_ahead(file, left)
