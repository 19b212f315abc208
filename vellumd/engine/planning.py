"""`python -m vellumd.engine plan SETTINGS`: how a model would run on this machine, without it.

SETTINGS is a JSON object of `EngineSettings`. Prints one JSON object: what `vellumd doctor`
tells of the card, without reading weights or taking more of it than probes need.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import torch

from vellumd import errors, model_card, presets
from vellumd.engine import attention, loading, memory, placing, precision
from vellumd.engine.shelf import Shelf
from vellumd.settings import EngineSettings


def main(argv: Sequence[str]) -> int:
    """Print the outlook for the first of `argv`, or the `error` that a start would end with."""
    settings = EngineSettings.model_validate_json(argv[0])
    try:
        found = outlook(settings, loading.device_of(str(settings.devices[0])))
    except errors.VellumError as error:
        found = {"error": f"{error.message} {error.remedy}"}
    print(json.dumps(found), flush=True)
    return 0


def outlook(settings: EngineSettings, device: torch.device) -> dict[str, Any]:
    """Recipe, attention, what runs here of neither and why, and the memory plan.

    Raises as `precision.choose`, `attention.choose` and `open_model` do.
    """
    card, model = model_card.of(settings), model_card.opened(settings)
    if device.type == "cuda":
        torch.cuda.set_device(device)
        memory.expandable(device)
    choice = precision.choose(settings, device)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    width = int(model.configs["transformer"]["attention_head_dim"])
    attending = attention.choose(settings.attention, device, dtype, width)
    shelf = Shelf(settings, card, model.transformer.files, choice.recipe)
    loras = presets.expected(settings, card).loras or ()
    ready = shelf.best(loras)
    beside = shelf.beside(ready, loras)
    plan = placing.plan(settings, model, ready, choice.recipe, device, beside)
    return {
        "recipe": choice.recipe.name,
        "attention": attending.name,
        "refused": {**choice.refused, **attending.refused},
        "plan": str(plan),
        "fits": plan.fits,
    }
