"""Presets: named sets of edit options, and how a request becomes a resolved edit.

A request's own field wins over its preset's, that over the default preset's. Nothing
here needs the engine: a job is resolved once, when it is accepted.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from math import isqrt
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

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
    asked_area,
    bad_request,
    notice,
)
from vellumd.preset_file import PresetFile
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

_NAME = re.compile(r"\w([\w .@-]{0,62}[\w@-])?")
"""Names that can be saved: a part of a path, a level of an MQTT topic, a key of TOML."""

SHOWN = 8
"""Saved presets that an error names."""

Origin = Literal["shipped", "configuration", "saved"]


@dataclass(frozen=True)
class NamedPreset:
    """A preset with its name and where it comes from: only a saved one can be changed.

    `usable`: whether the files of its LoRAs are here.
    """

    name: str
    origin: Origin
    options: Preset
    usable: bool

    def public(self) -> dict[str, Any]:
        """As JSON: `options` holds what is set, and can be saved again as it is."""
        options = self.options.model_dump(mode="json", exclude_none=True)
        return {
            "name": self.name, "origin": self.origin, "usable": self.usable, "options": options,
        }  # fmt: skip


class Presets:
    """The presets of one daemon, and the only place where requests are resolved.

    What is saved can neither hide nor change what ships or is configured.
    """

    def __init__(self, settings: Settings, card: ModelCard, file: PresetFile | None = None) -> None:
        self._engine = settings.engine
        self._limits = settings.limits
        self._card = card
        self._file = file
        self._configured = settings.presets.keys()
        self._fixed = dict(SHIPPED)
        for name, preset in settings.presets.items():
            self._fixed[name] = _over(preset, SHIPPED.get(name, Preset()))
        self.default = settings.engine.preset or card.preset or "balanced"

    @property
    def named(self) -> dict[str, Preset]:
        """Every preset by its name, the saved ones last."""
        saved = self._file.named if self._file else {}
        return {**self._fixed, **{n: p for n, p in saved.items() if n not in self._fixed}}

    def list(self) -> tuple[NamedPreset, ...]:
        """All presets, the saved ones last."""
        return tuple(self._described(*item) for item in self.named.items())

    def get(self, name: str) -> NamedPreset:
        """One preset; raises `NotFound`."""
        if name not in (named := self.named):
            raise errors.NotFound(f"There is no preset {name[:64]!r}.")
        return self._described(name, named[name])

    def save(self, name: str, options: dict[str, Any]) -> NamedPreset:
        """Keep `options` under `name`; on disk when it returns. Blocks.

        Raises what `resolve` raises for such options, and `PresetFixed`, `PresetsFull`,
        `StorageFull`.
        """
        if not _NAME.fullmatch(name):
            raise errors.BadRequest("name: up to 64 letters, digits, spaces and . @ _ -")
        file = self._changeable(name)
        preset = parse(options)
        self._check_options(_over(preset, self._fallback))
        file.save(name, preset)
        return self.get(name)

    def delete(self, name: str) -> None:
        """Forget a saved preset; jobs that used it keep what it said. Blocks.

        Raises `NotFound`, `PresetFixed`.
        """
        self._changeable(name).delete(name)

    def _changeable(self, name: str) -> PresetFile:
        """The file, where it may change `name`; raises `PresetFixed`.

        Of the default one the configuration says that it counts for everybody.
        """
        if self._file is None or name in self._fixed:
            raise errors.PresetFixed(f"The preset {name!r} cannot be changed here.")
        if name == self.default and name in self._file.named:
            raise errors.PresetFixed("Requests without a preset use this one.")
        return self._file

    def _described(self, name: str, preset: Preset) -> NamedPreset:
        origin: Origin = "configuration" if name in self._configured else "shipped"
        if name not in self._fixed:
            origin = "saved"
        try:
            self._check_loras(_over(preset, self._fallback))
        except errors.UnknownLora:
            return NamedPreset(name, origin, preset, usable=False)
        return NamedPreset(name, origin, preset, usable=True)

    def troubles(self) -> Iterator[str]:
        """What of the configuration no request can use, and what to do."""
        if self.default not in self.named:
            yield (
                f"engine.preset: there is no preset {self.default!r}, so edits that name none are "
                f"refused. Correct it, or save the preset; there is {self._there()}."
            )
        elif why := self._why_not(self.named[self.default]):
            yield f"edits without a preset are refused, as {self.default!r} cannot be used. {why}"
        for name in self._configured:
            if name != self.default and (why := self._why_not(self._fixed[name])):
                yield f"presets.{name}: {why}"

    def _why_not(self, preset: Preset) -> str:
        """Why no request can use a preset, and what to do; empty if one can."""
        try:
            self._check_options(_over(preset, self._fallback))
        except errors.VellumError as error:
            return f"{error.message} {error.remedy}"
        return ""

    def _there(self) -> str:
        return ", ".join([*self.named][: len(self._fixed) + SHOWN])

    @property
    def _fallback(self) -> Preset:
        return self.named.get(self.default, SHIPPED["balanced"])

    def resolve(self, request: EditRequest) -> tuple[ResolvedEdit, tuple[Notice, ...]]:
        """The edit with every field decided, and the warnings that go with it.

        Raises `UnknownPreset`, `UnknownLora`, `UnknownTier`, `TooManyImages`, `BadSize`
        and `BadRequest`.
        """
        name = request.preset or self.default
        chosen = self._choose(request, name)
        self._check(request, chosen)
        asked = _applied(chosen)
        loras = with_fused(asked, self._card)
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
        if name not in (named := self.named):
            raise errors.UnknownPreset(f"There is no preset {name!r}; there is {self._there()}.")
        return _over(request, _over(named[name], self._fallback))

    def _check(self, request: EditRequest, chosen: Preset) -> None:
        if not 1 <= len(request.images) <= self._limits.max_images:
            raise errors.TooManyImages(f"An edit takes 1 to {self._limits.max_images} pictures.")
        if not (chosen.prompt or "").strip():
            raise errors.BadRequest("prompt: it is empty.")
        self._check_options(chosen)

    def _check_options(self, chosen: Preset) -> None:
        """What holds for a preset as for a request that uses it."""
        for field in ("prompt", "negative_prompt"):
            text = getattr(chosen, field) or ""
            if len(text.encode("utf-8", "surrogatepass")) > self._limits.max_prompt:
                raise errors.BadRequest(
                    f"{field}: it is longer than {self._limits.max_prompt} bytes."
                )
        if chosen.seed is not None and chosen.seed + (chosen.n or 1) - 1 > SEED_MAX:
            raise errors.BadRequest("seed: it is too large for this many results.")
        if asked_area(chosen.size or "") > self._card.largest_area:
            raise errors.BadSize(
                f"{chosen.size} has more pixels than the model {self._card.name!r} makes: "
                f"{self._card.largest_area} at most, as {_largest(self._card)} has."
            )
        self._check_loras(chosen)
        self._tier(chosen.tier)

    def _check_loras(self, chosen: Preset) -> None:
        check_loras(with_fused(_applied(chosen), self._card), self._engine, self._card)

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


def parse(options: dict[str, Any]) -> Preset:
    """The preset made of `options`; raises the coded error for the first wrong one."""
    try:
        return Preset.model_validate(options)
    except ValidationError as error:
        raise bad_request(Preset, error) from None


def _applied(preset: Preset) -> tuple[LoraRef, ...]:
    """The LoRAs that count."""
    return tuple(lora for lora in preset.loras or () if lora.scale != 0)


def expected(engine: EngineSettings, card: ModelCard) -> Preset:
    """The preset that requests without one get, as far as the engine knows it."""
    return SHIPPED.get(engine.preset or card.preset or "balanced", SHIPPED["balanced"])


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
    files: list[tuple[str, Path]] = []
    for lora in loras:
        if lora.name == card.fused:
            continue
        if lora.name in card.loras and not model_card.folder(engine.model).exists():
            continue
        file = model_card.find_lora(engine.model, card, engine.loras, lora.name, engine.base)
        if file is None or not file.is_file():
            raise errors.UnknownLora(f"The LoRA {lora.name!r} is not here.")
        files.append((lora.name, file))
    check_together(files, card)


def check_together(loras: Iterable[tuple[str, Path]], card: ModelCard) -> None:
    """Raises `UnknownLora` unless these LoRAs, name and file, can be added to one another."""
    names: dict[Path, str] = {}
    for name, file in loras:
        if card.fused and checkpoint.lightning_steps(file.stem):
            raise errors.UnknownLora(
                f"{card.fused!r} is inside the model's weights; {name!r} cannot be added."
            )
        if (first := names.get(file.resolve())) is not None:
            raise errors.UnknownLora(f"{first!r} and {name!r} are the same LoRA.")
        names[file.resolve()] = name


def _largest(card: ModelCard) -> str:
    """The largest square size of a model."""
    side = isqrt(card.largest_area)
    return f"{side}x{side}"


def _over(upper: Preset | EditRequest, lower: Preset) -> Preset:
    """`lower` with every field that `upper` sets."""
    fields = {name: getattr(upper, name) for name in FIELDS if getattr(upper, name) is not None}
    if fields.get("output") and lower.output:
        output = fields["output"].model_dump(exclude_none=True)
        fields["output"] = lower.output.model_copy(update=output)
    return lower.model_copy(update=fields)
