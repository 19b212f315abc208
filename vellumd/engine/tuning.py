"""Which recipe is the fastest on this card: each that runs is timed on one block, once."""

from __future__ import annotations

import importlib.metadata
import json
import logging
import statistics
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch

from vellumd import __version__, platform
from vellumd.engine import attention, precision
from vellumd.engine.bench.measure import WARM, timed
from vellumd.engine.bench.workload import TIMES, Workload, random_transformer
from vellumd.engine.block import Streams
from vellumd.engine.kernels import choice
from vellumd.engine.modulation import modulate
from vellumd.engine.precision import PLAIN, RECIPES, Recipe
from vellumd.engine.residual import Residual
from vellumd.engine.rows import ONE
from vellumd.engine.transformer import Inputs, Own
from vellumd.engine.trial import Standby
from vellumd.models import Tier

log = logging.getLogger(__name__)

FILE = "recipes.json"
"""In the engine's cache folder: seconds of a block by recipe, by what they depend on."""
AREA = 1024 * 1024
"""Pixels of the target and of the reference."""
ROUNDS = 5
PLAIN_GB = 72
"""Gigabytes of a card on which weights as they are leave room for three references (63)."""

Times = dict[str, float]


def choose(
    tier: Tier,
    wanted: str,
    device: torch.device,
    config: dict[str, Any],
    cache: Path,
    beat: Callable[[int, int], None],
) -> tuple[precision.Choice, Times]:
    """As `precision.choose`, but of the recipes that run here `auto` takes the fastest.

    `config` is the transformer's. Also the seconds of a block by recipe, best first; none where
    nothing was to be chosen. They are kept in `cache`, so only the first start measures.
    """
    first = precision.choose(tier, wanted, device)
    if wanted != "auto" or tier == "reference" or device.type == "cpu":
        return first, {}
    found = known(device, config, cache, beat)
    best = next(iter(found), first.recipe.name)
    return precision.Choice(RECIPES[best], first.refused), found


def known(
    device: torch.device, config: dict[str, Any], cache: Path, beat: Callable[[int, int], None]
) -> Times:
    """The times of all recipes that run on `device`, best first: kept ones, or measured now."""
    file, key = cache / FILE, about(device, config)
    kept = read(file)
    if key not in kept:
        kept[key] = measured(candidates(device), device, config, beat)
        try:
            cache.mkdir(parents=True, exist_ok=True)
            platform.replace_durably(file, json.dumps(kept, indent=1).encode())
        except OSError as error:  # the next start measures again
            log.warning("what was measured cannot be kept: %s", error.strerror)
    return dict(sorted(kept[key].items(), key=lambda item: item[1]))


def read(file: Path) -> dict[str, Times]:
    """What `file` keeps; nothing where it is missing, damaged or knows other recipes."""
    try:
        kept: dict[str, Times] = json.loads(file.read_bytes())
        return {key: times for key, times in kept.items() if times and times.keys() <= {*RECIPES}}
    except (OSError, ValueError, AttributeError):
        return {}


def about(device: torch.device, config: dict[str, Any]) -> str:
    """All that the times depend on, as a key."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    versions = [f"vellumd {__version__}", f"torch {torch.__version__}"]
    for package in ("triton", "fa3-fwd"):
        try:
            versions.append(f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            versions.append(f"no {package}")
    size = config.get("num_attention_heads", 24) * config.get("attention_head_dim", 128)
    return ", ".join([name, *versions, f"{size} channels"])


def candidates(device: torch.device) -> list[Recipe]:
    """The recipes that run and leave room for an edit; casting is always among them."""
    return [
        recipe
        for recipe in RECIPES.values()
        if (recipe is not PLAIN or _memory(device) >= PLAIN_GB)
        and precision.complaint(recipe, device) is None
    ]


def _memory(device: torch.device) -> float:
    """Gigabytes of the card."""
    if device.type != "cuda":
        return 0.0
    return float(torch.cuda.get_device_properties(device).total_memory / 1e9)


@torch.inference_mode()
def measured(
    recipes: Iterable[Recipe],
    device: torch.device,
    config: dict[str, Any],
    beat: Callable[[int, int], None],
) -> Times:
    """The median seconds of one block by recipe, with one reference."""
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    width = config.get("attention_head_dim", attention.WIDTH)
    best = attention.choose("auto", device, dtype, width).attention
    ops = choice.choose("auto", device, dtype, Standby()).ops
    recipes, found = list(recipes), {}
    for done, recipe in enumerate(recipes):
        beat(done, len(recipes))
        # Two blocks, since the last one does less.
        model = random_transformer({**config, "num_layers": 2}, device, dtype)
        precision.hold(model, recipe)
        work = Workload.of(model, AREA, references=1)
        given, _tokens = work.inputs(model, device)
        inputs = Inputs.of(model, given)
        (mods,) = modulate(model, torch.tensor(TIMES[-1:], device=device, dtype=dtype) / 1000)
        block = Own(model, best, ops).blocks[0]
        image = torch.randn(1, 2 * work.tokens, work.channels, device=device, dtype=dtype)
        asked = (
            Residual(image, work.tokens), inputs.text_of(ONE), Streams.of(block.stock),
            mods.blocks[0], inputs.ropes_of(ONE), inputs.rooms.enter(0, ONE), ONE,
        )  # fmt: skip

        def run() -> object:
            return block(*asked)  # noqa: B023 (called in this turn only)

        for _ in range(WARM):
            run()
        found[recipe.name] = statistics.median(timed(run, device) for _ in range(ROUNDS))
        log.info("recipe %s: %.2f ms a block", recipe.name, 1000 * found[recipe.name])
    return found
