"""What `vellumd doctor` says of artefacts: whether the engine will use the ones that were made.

One that does not fit is passed over by the engine without an error: edits still come, but load
slower and take more memory. So each is told, with why.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from vellumd import artefact, errors, model_card
from vellumd.artefact import MANIFEST, Artefact, Stamp
from vellumd.hookspecs import Check
from vellumd.settings import EngineSettings, Settings
from vellumd.weights.model import Model

AGAIN = "remove its folder, then `vellumd convert` makes it again"


def artefacts(settings: Settings, *, hashes: bool = False) -> Iterator[Check]:
    """Those in `engine.artifact_dir`; with `hashes` their bytes are read and compared."""
    engine = settings.engine
    try:
        card = model_card.of(engine)
        if engine.model == model_card.DEMO and engine.artifact_dir is None:
            return
        model = model_card.opened(engine)
    except errors.VellumError:
        return  # told above
    home = artefact.home(engine.artifact_dir)
    whole = [one for one in artefact.found(home) if one.manifest.model == card.name]
    source = artefact.source_of(model.transformer.files)
    for one in whole:
        yield _of_model(one, source, engine, hashes=hashes)
    if not any(one.manifest.order.source == source for one in whole):
        yield Check(True, _none(model))
    yield from _others(home)


def _of_model(
    one: Artefact, source: Sequence[Stamp], engine: EngineSettings, *, hashes: bool
) -> Check:
    order, name = one.manifest.order, f"artefact {one.folder.name}"
    if order.source != source:
        text = "it was made of other files, by size, time or header. If the model's have changed"
        return Check(True, f"note: {name} is not used: {text}, {AGAIN}")
    if order.keep != engine.keep:
        text = f"it was made with engine.keep = {list(order.keep)}"
        return Check(True, f"note: {name} is not used: {text}")
    try:
        one.check(hashes=hashes)
    except errors.VellumError as error:
        return Check(False, error.message)
    inside = [f"{fused.file.name} at {fused.scale:g}" for fused in order.fused]
    size = sum(shard.size for shard in one.manifest.files.values()) / 10**9
    read = ", as it was written to the byte" if hashes else ""
    return Check(True, f"{name}: {', '.join(inside) or 'no LoRA'} inside, {size:.1f} GB{read}")


def _none(model: Model) -> str:
    text = "no artefact of this model: FP8 recipes fit its weights anew at each load"
    fp8 = any(weight.place.is_fp8 for weight in model.transformer.weights.values())
    return text if fp8 else f"{text}; `vellumd convert` makes one"


def _others(home: Path) -> Iterator[Check]:
    """What calls itself an artefact and is none: unfinished, of another version, or damaged."""
    there = {one.folder for one in artefact.found(home)}
    for folder in sorted(home.iterdir()) if home.is_dir() else ():
        if folder.name.endswith(".part"):
            text = "the same `vellumd convert` goes on with it"
            yield Check(True, f"note: artefact {folder.name} is not finished: {text}")
        elif folder not in there and (folder / MANIFEST).is_file():
            text = f"lacks files, or is of another version: {AGAIN}"
            yield Check(False, f"artefact {folder.name} {text}")
