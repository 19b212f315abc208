"""Presets: named sets of edit options, and how a request becomes a resolved edit.

A request's own field wins over its preset's, that over the default preset's. Nothing
here needs the engine: a job is resolved once, when it is accepted.
"""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import Any

from vellumd import errors, model_card
from vellumd.model_card import ModelCard
from vellumd.models import (
    SEED_MAX,
    EditRequest,
    LoraRef,
    Notice,
    ResolvedEdit,
    ResolvedOutput,
    notice,
)
from vellumd.settings import EngineSettings, Preset, Settings

LIGHTNING = (LoraRef(name="lightning-8"),)

SHIPPED: dict[str, Preset] = {
    "fastest": Preset(loras=LIGHTNING, steps=8, true_cfg_scale=1.0),
    "balanced": Preset(loras=LIGHTNING, steps=8, true_cfg_scale=3.0),
    "original": Preset(loras=(), steps=28, true_cfg_scale=4.0),
}
"""`balanced` is what the predecessor recommended; `original` runs without a LoRA."""

FIELDS = tuple(Preset.model_fields)


def available(settings: Settings) -> dict[str, Preset]:
    """All presets by name: the shipped ones, changed and joined by the configured ones."""
    merged = dict(SHIPPED)
    for name, preset in settings.presets.items():
        merged[name] = _over(preset, SHIPPED.get(name, Preset()))
    return merged


def resolve(
    request: EditRequest, settings: Settings, card: ModelCard
) -> tuple[ResolvedEdit, tuple[Notice, ...]]:
    """The edit with every field decided, and the warnings that go with it.

    Raises `UnknownPreset`, `UnknownLora`, `UnknownTier`, `TooManyImages` and
    `BadRequest`.
    """
    chosen = _choose(request, settings)
    _check_limits(request, chosen, settings)
    loras = tuple(lora for lora in chosen["loras"] or () if lora.scale != 0)
    for lora in loras:
        check_lora(lora.name, settings.engine, card)
    edit = ResolvedEdit(
        model=card.name,
        preset=request.preset or settings.engine.preset,
        images=request.images,
        mask=request.mask,
        loras=loras,
        scheduler=scheduler_for(loras, card),
        seed=secrets.randbelow(2**32) if chosen["seed"] is None else chosen["seed"],
        tier=_tier(chosen["tier"], settings.engine),
        output=ResolvedOutput(**chosen["output"].model_dump(exclude_none=True))
        if chosen["output"]
        else ResolvedOutput(),
        **{
            name: chosen[name]
            for name in ("prompt", "negative_prompt", "steps", "true_cfg_scale", "size", "n")
            if chosen[name] is not None
        },
        priority=chosen["priority"] or 0,
    )
    return edit, _warnings(edit, card)


def scheduler_for(loras: tuple[LoraRef, ...], card: ModelCard) -> Any:
    """`lightning` if a LoRA was distilled for that schedule, else the model's own."""
    roles = (card.loras[lora.name].scheduler for lora in loras if lora.name in card.loras)
    return "lightning" if "lightning" in roles else "base"


def check_lora(name: str, engine: EngineSettings, card: ModelCard) -> None:
    """Raises `UnknownLora` unless the LoRA's file is there to be loaded.

    The demo's files are made by the engine, so its card alone counts.
    """
    if card.demo and name in card.loras:
        return
    file = model_card.find_lora(Path(engine.model), card, engine.loras, name)
    if file is None or not file.is_file():
        raise errors.UnknownLora(f"The LoRA {name!r} is not here.")


def _choose(request: EditRequest, settings: Settings) -> dict[str, Any]:
    presets = available(settings)
    name = request.preset or settings.engine.preset
    if name not in presets:
        raise errors.UnknownPreset(f"There is no preset {name!r}; there is {', '.join(presets)}.")
    default = presets.get(settings.engine.preset, SHIPPED["balanced"])
    merged = _over(request, _over(presets[name], default))
    return {field: getattr(merged, field) for field in FIELDS}


def _over(upper: Preset | EditRequest, lower: Preset) -> Preset:
    """`lower` with every field that `upper` sets."""
    fields = {name: getattr(upper, name) for name in FIELDS if getattr(upper, name) is not None}
    if fields.get("output") and lower.output:
        output = fields["output"].model_dump(exclude_none=True)
        fields["output"] = lower.output.model_copy(update=output)
    return lower.model_copy(update=fields)


def _check_limits(request: EditRequest, chosen: dict[str, Any], settings: Settings) -> None:
    limits = settings.limits
    if not 1 <= len(request.images) <= limits.max_images:
        raise errors.TooManyImages(f"An edit takes 1 to {limits.max_images} pictures.")
    if not (chosen["prompt"] or "").strip():
        raise errors.BadRequest("prompt: it is empty.")
    for field in ("prompt", "negative_prompt"):
        if len((chosen[field] or "").encode("utf-8", "surrogatepass")) > limits.max_prompt:
            raise errors.BadRequest(f"{field}: it is longer than {limits.max_prompt} bytes.")
    if chosen["seed"] is not None and chosen["seed"] + (chosen["n"] or 1) - 1 > SEED_MAX:
        raise errors.BadRequest("seed: it is too large for this many results.")


def _tier(wanted: str | None, engine: EngineSettings) -> Any:
    if engine.tier == "reference":
        return "reference"
    if wanted == "reference":
        raise errors.UnknownTier("The reference tier is not open to single requests.")
    return wanted or engine.tier


def _warnings(edit: ResolvedEdit, card: ModelCard) -> tuple[Notice, ...]:
    codes = ["demo_model"] if card.demo else []
    if len(edit.images) > 3:
        codes.append("many_images")
    return tuple(notice(code) for code in codes)
