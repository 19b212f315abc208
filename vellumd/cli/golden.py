"""The golden edit of doctor: the demo makes one picture, and it has to be the right one.

It runs as `vellumd edit` without a daemon does, in a folder that goes away, so it takes no
job and needs no model. What it proves: the engine process starts, computes and writes.
"""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

from vellumd import errors, model_card
from vellumd.hookspecs import Check
from vellumd.settings import Settings

GOLDEN_S = 300.0
"""Seconds for loading and editing; two slow cores need ten."""
NEARER = 4
"""How many times nearer to the right picture than to the input the result has to be."""


async def edit() -> Check:
    """Edit the demo's example and compare the result with the picture that is right."""
    from vellumd import local

    card = model_card.read(model_card.DEMO)
    assert card.example and card.example.result
    folder = model_card.folder(model_card.DEMO)
    image, right = folder / card.example.image, folder / card.example.result
    began = time.monotonic()
    try:
        async with asyncio.timeout(GOLDEN_S), local.session(Settings()) as engine:
            job, files = await engine.edit([image], {"prompt": card.example.prompt, "seed": 42})
            if job.error:
                return Check(False, f"the demo's edit failed: {job.error.message}")
            share = difference(files[0], right) / difference(image, right)
    except TimeoutError:
        return Check(False, f"the demo's edit did not end within {GOLDEN_S:.0f} s; see the log")
    except errors.VellumError as error:
        return Check(False, f"the demo's edit failed: {error.message} {error.remedy}")
    if share * NEARER > 1:
        text = "the demo's edit is wrong: torch computes badly here; update it, or the driver"
        return Check(False, text)
    return Check(True, f"the demo edits rightly, {time.monotonic() - began:.0f} s with loading")


def difference(one: Path, other: Path) -> float:
    """Mean difference of two pictures' channels, 0 to 255; 255 where their sizes differ."""
    from PIL import Image, ImageChops, ImageStat

    with Image.open(one) as first, Image.open(other) as second:
        if first.size != second.size:
            return 255.0
        both = ImageChops.difference(first.convert("RGB"), second.convert("RGB"))
    return sum(ImageStat.Stat(both).mean) / 3
