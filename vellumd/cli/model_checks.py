"""What `vellumd doctor` says of weights and LoRAs: mistakes that no error would ever tell.

All of it from headers, so it takes a moment and needs no torch.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from vellumd import errors, model_card, platform
from vellumd.hookspecs import Check
from vellumd.model_card import ModelCard
from vellumd.preset_file import FILE, PresetFile
from vellumd.presets import Presets
from vellumd.settings import Settings
from vellumd.weights import lora
from vellumd.weights.checkpoint import Checkpoint
from vellumd.weights.model import Model

GB = 10**9
TRAINED_WITH = {"2511": True, "2509": False}
"""What a model's name says of zero_cond_t."""
LIGHTNING_SHIFT = 1.1
"""The logarithm of 3, at every size (model card of lightx2v/Qwen-Image-Edit-2511-Lightning)."""


def model(settings: Settings) -> Iterator[Check]:
    """Card, parts and layouts, zero_cond_t, scheduler, and the room that weights take."""
    engine = settings.engine
    try:
        card = model_card.of(engine)
        if card.demo and engine.model == model_card.DEMO:
            text = (
                f"model demo ({card.note}); set engine.model to a model's folder or file for more"
            )
            yield Check(True, text)
            return
        found = model_card.opened(engine)
    except errors.VellumError as error:
        remedy = error.remedy.replace("; `vellumd doctor` tells more", "")  # it is speaking
        yield Check(False, f"{error.message} {remedy}")
        return
    yield Check(True, f"model {card.name}")
    for part in found.parts:
        yield Check(True, f"{part.part}: {part.layout}, {part.nbytes / GB:.1f} GB of weights")
    if card.fused:
        yield Check(True, f"{card.fused} is inside the weights: every edit has it, none adds it")
    if found.transformer.is_plain_fp8:
        yield _plain_fp8()
    yield _zero_cond_t(found, card.name)
    yield from _causal(found, f"{card.name} {model_card.folder(engine.model).name}")
    yield _scheduler(found.base)
    yield _room(found)


def _plain_fp8() -> Check:
    """Not wrong, but nobody would know why edits look coarse."""
    return Check(
        True,
        "note: the transformer is FP8 without scales, which lost small weights for good; LoRAs "
        "stay beside it in bfloat16. Only the bfloat16 model brings the quality back",
    )


def _zero_cond_t(found: Model, name: str) -> Check:
    """Whether the flag agrees with the file's mark and with what the model is called."""
    flag = found.zero_cond_t
    word = {True: "on", False: "off"}[flag]
    told = {
        "settings": "engine.zero_cond_t",
        "config": "config.json",
        "sentinel": "the file's mark",
        "causal": "the causal transformer",
    }
    text = f"zero_cond_t is {word}, says {told[found.told_by]}"
    if found.transformer.sentinel and not flag:
        return Check(False, f"{text}; the file's mark says on: set engine.zero_cond_t = true")
    for year, right in TRAINED_WITH.items():
        if year in name and flag is not right:
            wanted = str(right).lower()
            return Check(False, f"{text}; {year} needs it {wanted}: set engine.zero_cond_t")
    return Check(True, text if flag else f"{text}: right for models before 2511")


def _causal(found: Model, name: str) -> Iterator[Check]:
    """Whether references are as the model's name says."""
    if found.causal:
        yield Check(True, "causal: each picture looks at itself alone, and is computed once")
    elif "causal" in name.lower():
        text = "the model is called causal, and its config.json does not say so: set engine.causal"
        yield Check(False, text)


def _scheduler(base: Path) -> Check:
    """Lightning's schedule belongs to its LoRAs, which bring it; the model's file is its own."""
    try:
        found: Any = json.loads((base / "scheduler/scheduler_config.json").read_text("utf-8"))
        shifts = {round(found["base_shift"], 2), round(found["max_shift"], 2)}
        lightning = shifts == {LIGHTNING_SHIFT} and not found.get("shift_terminal")
    except (OSError, ValueError, LookupError, TypeError):
        return Check(False, "scheduler/scheduler_config.json is missing or damaged")
    if lightning:
        return Check(
            False,
            "scheduler/scheduler_config.json is Lightning's: edits without its LoRA stay noisy. "
            "Put the model's own file back; LoRAs bring their schedule themselves",
        )
    return Check(True, "the scheduler is the model's own; Lightning LoRAs bring theirs")


def _room(found: Model) -> Check:
    """What the weights take, whichever way they are held, and what memory there is."""
    others = sum(2 * part.count for part in found.parts if part is not found.transformer)
    count = found.transformer.count
    text = (
        f"weights take {(others + 2 * count) / GB:.0f} GB on a card in bfloat16, "
        f"{(others + count) / GB:.0f} GB with the transformer in FP8"
    )
    memory = platform.memory()
    if not memory.total:
        return Check(True, text)
    return Check(
        True, f"{text}; this machine has {memory.available / GB:.0f} GB of free memory for itself"
    )


def loras(settings: Settings) -> Iterator[Check]:
    """Files of roles and presets: whether they fit the model, their role and each other."""
    engine = settings.engine
    try:
        card = model_card.of(engine)
        if engine.model == model_card.DEMO and not engine.loras and not settings.presets:
            return
        transformer = model_card.opened(engine).transformer
    except errors.VellumError:
        return  # told above
    seen: dict[Path, str] = {}
    wanted = {ref.name for preset in settings.presets.values() for ref in preset.loras or ()}
    for role in sorted({*card.loras, *engine.loras, *wanted} - {card.fused}):
        file = model_card.find_lora(engine.model, card, engine.loras, role, engine.base)
        if file is not None and (first := seen.setdefault(file.resolve(), role)) != role:
            yield Check(False, f"LoRA {role}: the same file as {first}; together they count twice")
        else:
            yield _lora(role, file, card, transformer)


def presets(settings: Settings) -> Iterator[Check]:
    """What of the configured presets no request can use."""
    with suppress(errors.VellumError):  # of the model, told above
        saved = PresetFile(settings.store.dir / FILE)
        for trouble in Presets(settings, model_card.of(settings.engine), saved).troubles():
            yield Check(False, trouble)


def _lora(role: str, file: Path | None, card: ModelCard, transformer: Checkpoint) -> Check:
    if file is None:
        return Check(True, f"LoRA {role}: no file, presets that name it cannot be used")
    if not file.is_file():
        return Check(False, f"LoRA {role}: its file is missing; correct [engine.loras]")
    try:
        found = lora.read(file, transformer)
    except errors.VellumError as error:
        return Check(False, f"LoRA {role}: {error.message}")
    if wrong := _mistake(role, found, card):
        return Check(False, f"LoRA {role}: {wrong}")
    if _schedule(role, card) == "lightning" and not found.steps:
        text = "is no Lightning file by its name, and has Lightning's scheduler in this role"
        return Check(True, f"note: LoRA {role}: {file.name} {text}")
    size = f"{len(found.pairs)} linears, {found.nbytes / GB:.1f} GB"
    return Check(True, f"LoRA {role}: {file.name}, {_schedule(role, card)} scheduler, {size}")


def _schedule(role: str, card: ModelCard) -> str:
    return card.loras[role].scheduler if role in card.loras else "base"


def _mistake(role: str, found: lora.LoraFile, card: ModelCard) -> str | None:
    """What is silently wrong with a LoRA of this role, or None."""
    if found.steps and card.fused:
        return f"{card.fused} is inside the weights; a second Lightning LoRA cannot be added"
    if found.steps and _schedule(role, card) != "lightning":
        return f"a Lightning file needs the role lightning-{found.steps}, for its scheduler"
    if found.steps and role.rpartition("-")[2] != str(found.steps):
        return f"the file is made for {found.steps} steps"
    return None
