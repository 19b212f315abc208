"""What happens before torch is imported: the model is looked at, and its bytes are fetched.

Importing torch, diffusers and transformers takes seconds. A model that cannot be loaded is
refused before them, and a cold disk is read while they run.
"""

from __future__ import annotations

import logging
import os
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
        os.environ.setdefault(name, str(cache / folder))


def fetch(files: Iterable[Path]) -> None:
    """Have the system read `files` into its cache, in order, as far as memory allows."""
    left = int(platform.memory().available * SHARE)
    for file in files:
        if left <= 0:
            return
        left -= platform.read_ahead(file, left)
