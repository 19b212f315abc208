"""Which recipe is the fastest on this card: each that runs is timed on one block, once."""

from __future__ import annotations

import importlib.metadata
import json
import logging
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field, PositiveFloat, TypeAdapter

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
from vellumd.engine.trial import Standby, refusal
from vellumd.settings import EngineSettings

log = logging.getLogger(__name__)

FILE = "recipes.json"
"""In the engine's cache folder: seconds of a block by recipe, by what they depend on."""
AREA = 1024 * 1024
"""Pixels of the target and of the reference."""
ROUNDS = 5
PLAIN_GB = 72
"""Gigabytes of a card on which weights as they are leave room for three references (63)."""

Times = dict[str, float]
Beat = Callable[[int, int], None]

Name = Annotated[str, Field(pattern=f"^({'|'.join(RECIPES)})$")]
FOUND = TypeAdapter(dict[str, dict[Name, PositiveFloat]])
"""What the file holds."""


def choose(
    settings: EngineSettings, device: torch.device, config: dict[str, Any], cache: Path, beat: Beat
) -> tuple[precision.Choice, Times]:
    """As `precision.choose`, but of the recipes that run here `auto` takes the fastest.

    `config` is the transformer's. Also the seconds of a block by recipe, best first; none where
    nothing was to be chosen. They are kept in `cache`, so only the first start measures.
    """
    first = precision.choose(settings, device)
    if settings.recipe != "auto" or settings.tier == "reference" or device.type == "cpu":
        return first, {}
    found = known(settings, device, config, cache, beat)
    best = next(iter(found), first.recipe.name)
    return precision.Choice(RECIPES[best], first.refused), found


def known(
    settings: EngineSettings, device: torch.device, config: dict[str, Any], cache: Path, beat: Beat
) -> Times:
    """The times of the recipes that run on `device`, best first: kept ones, or measured now."""
    running = candidates(settings, device)
    file, key = cache / FILE, about(settings, device, config, running)
    kept = read(file)
    if not kept.get(key):
        kept[key] = measured(running, settings, device, config, beat)
        keep(file, kept)
    return dict(sorted(kept[key].items(), key=lambda item: item[1]))


def read(file: Path) -> dict[str, Times]:
    """What `file` keeps; nothing where it is missing, damaged or knows other recipes."""
    try:
        return FOUND.validate_json(file.read_bytes())
    except (OSError, ValueError):
        return {}


def keep(file: Path, times: dict[str, Times]) -> None:
    """Have `times` in `file`; without room there the next start measures anew."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        platform.replace_durably(file, json.dumps(times, indent=1).encode())
    except OSError as error:
        log.warning("the recipes' times are not kept: %s", error)


def about(
    settings: EngineSettings,
    device: torch.device,
    config: dict[str, Any],
    running: Sequence[Recipe],
) -> str:
    """All that the times depend on, as a key. What a driver changes shows in what runs."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    versions = [f"vellumd {__version__}", f"torch {torch.__version__}"]
    for package in ("triton", "fa3-fwd"):
        try:
            versions.append(f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            versions.append(f"no {package}")
    size = config.get("num_attention_heads", 24) * config.get("attention_head_dim", 128)
    kinds = f"attention {settings.attention}", f"kernels {kernels(settings)}"
    recipes = " ".join(recipe.name for recipe in running)
    return ", ".join([name, *versions, f"{size} channels", *kinds, recipes])


def kernels(settings: EngineSettings) -> str:
    """Those that a block is timed with. What torch compiles fuses what Triton's kernels do."""
    return "auto" if settings.compile else settings.kernels


def candidates(settings: EngineSettings, device: torch.device) -> list[Recipe]:
    """The recipes that run and leave room for an edit; casting is always among them."""
    return [
        recipe
        for recipe in RECIPES.values()
        if not (recipe is PLAIN and room(settings, device) < PLAIN_GB)
        and not (recipe.fused and settings.forward == "stock")
        and precision.complaint(recipe, device) is None
    ]


def room(settings: EngineSettings, device: torch.device) -> float:
    """Gigabytes of the card that may be used."""
    if device.type != "cuda":
        return 0.0
    card = float(torch.cuda.get_device_properties(device).total_memory / 1e9)
    return min(card, settings.vram_budget_gb or card)


def measured(
    recipes: Sequence[Recipe],
    settings: EngineSettings,
    device: torch.device,
    config: dict[str, Any],
    beat: Beat,
) -> Times:
    """The median seconds of one block by recipe, with one reference.

    A recipe that fails at the real size is left out.
    """
    found: Times = {}
    for done, recipe in enumerate(recipes):
        beat(done, len(recipes))

        def measure(recipe: Recipe = recipe) -> None:
            found[recipe.name] = seconds(recipe, settings, device, config)
            log.info("recipe %s: %.2f ms a block", recipe.name, 1000 * found[recipe.name])

        if why := refusal(measure):
            log.warning("recipe %s is left out: %s", recipe.name, why)
    return found


@torch.inference_mode()
def seconds(
    recipe: Recipe, settings: EngineSettings, device: torch.device, config: dict[str, Any]
) -> float:
    """The median seconds of one block of `recipe`."""
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    width = config.get("attention_head_dim", attention.WIDTH)
    best = attention.choose(settings.attention, device, dtype, width).attention
    ops = choice.choose(kernels(settings), device, dtype, Standby()).ops
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
        return block(*asked)

    for _ in range(WARM):
        run()
    return statistics.median(timed(run, device) for _ in range(ROUNDS))
