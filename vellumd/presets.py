"""Presets: named sets of edit options, and how a request becomes a resolved edit.

A request's own field wins over its preset's, that over the default preset's. Nothing
here needs the engine: a job is resolved once, when it is accepted.
"""

from __future__ import annotations

import random
from typing import Literal

from vellumd import errors, model_card
from vellumd.model_card import ModelCard
from vellumd.models import (
    SEED_MAX,
    EditRequest,
    LoraRef,
    Notice,
    OutputOptions,
    ResolvedEdit,
    ResolvedOutput,
    Tier,
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

NEGATIVE = " "
"""What guidance steers away from by default: the model needs some text there."""
FIELDS = tuple(Preset.model_fields)


class Presets:
    """The presets of one configuration, and the only place where requests are resolved."""

    def __init__(self, settings: Settings, card: ModelCard) -> None:
        self._engine = settings.engine
        self._limits = settings.limits
        self._card = card
        self.named = dict(SHIPPED)
        for name, preset in settings.presets.items():
            self.named[name] = _over(preset, SHIPPED.get(name, Preset()))
        self.default = settings.engine.preset or card.preset or "balanced"
        self._fallback = self.named.get(self.default, SHIPPED["balanced"])

    def resolve(self, request: EditRequest) -> tuple[ResolvedEdit, tuple[Notice, ...]]:
        """The edit with every field decided, and the warnings that go with it.

        Raises `UnknownPreset`, `UnknownLora`, `UnknownTier`, `TooManyImages` and
        `BadRequest`.
        """
        name = request.preset or self.default
        chosen = self._choose(request, name)
        self._check(request, chosen)
        loras = tuple(lora for lora in chosen.loras or () if lora.scale != 0)
        for lora in loras:
            check_lora(lora.name, self._engine, self._card)
        output = chosen.output or OutputOptions()
        edit = ResolvedEdit(
            model=self._card.name,
            preset=name,
            images=request.images,
            mask=request.mask,
            prompt=chosen.prompt or "",
            negative_prompt=chosen.negative_prompt or NEGATIVE,
            steps=chosen.steps or 1,
            true_cfg_scale=1 if chosen.true_cfg_scale is None else chosen.true_cfg_scale,
            seed=random.getrandbits(32) if chosen.seed is None else chosen.seed,
            size=chosen.size or "match",
            n=chosen.n or 1,
            tier=self._tier(chosen.tier),
            loras=loras,
            scheduler=scheduler_for(loras, self._card),
            output=ResolvedOutput(**output.model_dump(exclude_none=True)),
            priority=chosen.priority or 0,
        )
        return edit, self._warnings(edit)

    def _choose(self, request: EditRequest, name: str) -> Preset:
        """The request's options over those of its preset, over those of the default one."""
        if name not in self.named:
            there = ", ".join(self.named)
            raise errors.UnknownPreset(f"There is no preset {name!r}; there is {there}.")
        return _over(request, _over(self.named[name], self._fallback))

    def _check(self, request: EditRequest, chosen: Preset) -> None:
        if not 1 <= len(request.images) <= self._limits.max_images:
            raise errors.TooManyImages(f"An edit takes 1 to {self._limits.max_images} pictures.")
        if not (chosen.prompt or "").strip():
            raise errors.BadRequest("prompt: it is empty.")
        for field in ("prompt", "negative_prompt"):
            text = getattr(chosen, field) or ""
            if len(text.encode("utf-8", "surrogatepass")) > self._limits.max_prompt:
                raise errors.BadRequest(
                    f"{field}: it is longer than {self._limits.max_prompt} bytes."
                )
        if chosen.seed is not None and chosen.seed + (chosen.n or 1) - 1 > SEED_MAX:
            raise errors.BadRequest("seed: it is too large for this many results.")

    def _tier(self, wanted: Tier | None) -> Tier:
        if self._engine.tier == "reference":
            return "reference"
        if wanted == "reference":
            raise errors.UnknownTier("The reference tier is not open to single requests.")
        return wanted or self._engine.tier

    def _warnings(self, edit: ResolvedEdit) -> tuple[Notice, ...]:
        codes = ["demo_model"] if self._card.demo else []
        if len(edit.images) > 3:
            codes.append("many_images")
        return tuple(notice(code) for code in codes)


def scheduler_for(loras: tuple[LoraRef, ...], card: ModelCard) -> Literal["base", "lightning"]:
    """`lightning` if a LoRA was distilled for that schedule, else the model's own."""
    roles = [card.loras[lora.name].scheduler for lora in loras if lora.name in card.loras]
    return "lightning" if "lightning" in roles else "base"


def check_lora(name: str, engine: EngineSettings, card: ModelCard) -> None:
    """Raises `UnknownLora` unless the LoRA's file is there to be loaded.

    Of a model whose folder is missing, as on a drive not mounted yet, the card alone
    counts.
    """
    if name in card.loras and not model_card.folder(engine.model).is_dir():
        return
    file = model_card.find_lora(engine.model, card, engine.loras, name)
    if file is None or not file.is_file():
        raise errors.UnknownLora(f"The LoRA {name!r} is not here.")


def _over(upper: Preset | EditRequest, lower: Preset) -> Preset:
    """`lower` with every field that `upper` sets."""
    fields = {name: getattr(upper, name) for name in FIELDS if getattr(upper, name) is not None}
    if fields.get("output") and lower.output:
        output = fields["output"].model_dump(exclude_none=True)
        fields["output"] = lower.output.model_copy(update=output)
    return lower.model_copy(update=fields)
