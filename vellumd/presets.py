"""Presets: named sets of edit options, and how a request becomes a resolved edit.

A request's own field wins over its preset's, that over the default preset's. Nothing
here needs the engine: a job is resolved once, when it is accepted.
"""

from __future__ import annotations

import random
from pathlib import Path
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
from vellumd.weights import checkpoint

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
        asked = tuple(lora for lora in chosen.loras or () if lora.scale != 0)
        loras = with_fused(asked, self._card)
        check_loras(loras, self._engine, self._card)
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
        return edit, self._warnings(edit, fused=loras != asked)

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

    def _warnings(self, edit: ResolvedEdit, *, fused: bool) -> tuple[Notice, ...]:
        codes = ["demo_model"] if self._card.demo else []
        if fused:
            codes.append("lora_fused")
        if len(edit.images) > 3:
            codes.append("many_images")
        return tuple(notice(code) for code in codes)


def expected(engine: EngineSettings, card: ModelCard) -> tuple[LoraRef, ...]:
    """The LoRAs of the preset that requests without one get, as far as the engine knows it."""
    preset = SHIPPED.get(engine.preset or card.preset or "balanced", SHIPPED["balanced"])
    return preset.loras or ()


def scheduler_for(loras: tuple[LoraRef, ...], card: ModelCard) -> Literal["base", "lightning"]:
    """`lightning` if a LoRA was distilled for that schedule, else the model's own."""
    return "lightning" if any(is_lightning(lora.name, card) for lora in loras) else "base"


def is_lightning(name: str, card: ModelCard) -> bool:
    """Whether the LoRA's role, or the one inside the weights, has the Lightning schedule."""
    role = card.loras.get(name)
    return role.scheduler == "lightning" if role else name == card.fused


def with_fused(loras: tuple[LoraRef, ...], card: ModelCard) -> tuple[LoraRef, ...]:
    """`loras` and the one inside the weights, which takes part whether asked for or not.

    Raises `UnknownLora` for another strength of it, and for a second Lightning LoRA.
    """
    if card.fused is None:
        return loras
    for lora in loras:
        if lora.name == card.fused and lora.scale != 1:
            raise errors.UnknownLora(
                f"{lora.name!r} is inside the model's weights; its scale cannot be changed."
            )
        if lora.name != card.fused and is_lightning(lora.name, card):
            raise errors.UnknownLora(
                f"{card.fused!r} is inside the model's weights; {lora.name!r} cannot be added."
            )
    if any(lora.name == card.fused for lora in loras):
        return loras
    return (LoraRef(name=card.fused), *loras)


def check_loras(loras: tuple[LoraRef, ...], engine: EngineSettings, card: ModelCard) -> None:
    """Raises `UnknownLora` unless each LoRA's file is there, and each a file of its own.

    A Lightning file under any name counts as one beside a Lightning LoRA that is inside the
    weights. Of a model that is missing, as on a drive not mounted yet, the card alone counts.
    """
    files: dict[Path, str] = {}
    for lora in loras:
        if lora.name == card.fused:
            continue
        if lora.name in card.loras and not model_card.folder(engine.model).exists():
            continue
        file = model_card.find_lora(engine.model, card, engine.loras, lora.name, engine.base)
        if file is None or not file.is_file():
            raise errors.UnknownLora(f"The LoRA {lora.name!r} is not here.")
        if card.fused and checkpoint.lightning_steps(file.stem):
            raise errors.UnknownLora(
                f"{card.fused!r} is inside the model's weights; {lora.name!r} cannot be added."
            )
        if (first := files.setdefault(file.resolve(), lora.name)) != lora.name:
            raise errors.UnknownLora(f"{first!r} and {lora.name!r} are the same LoRA.")


def _over(upper: Preset | EditRequest, lower: Preset) -> Preset:
    """`lower` with every field that `upper` sets."""
    fields = {name: getattr(upper, name) for name in FIELDS if getattr(upper, name) is not None}
    if fields.get("output") and lower.output:
        output = fields["output"].model_dump(exclude_none=True)
        fields["output"] = lower.output.model_copy(update=output)
    return lower.model_copy(update=fields)
