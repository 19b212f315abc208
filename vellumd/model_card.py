"""`vellumd.json`: what belongs to a model and not to the machine it runs on.

Demo and real models swap by one key because canvas, LoRA roles and preview colours
stand here. A folder without the file gets the defaults of Qwen-Image-Edit-2511.
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, ValidationError

from vellumd import catalogue, errors
from vellumd.models import Frozen

FILE = "vellumd.json"
DEMO = "demo"
DEMO_FOLDER = Path(__file__).parent / "demo" / "model"


class LoraRole(Frozen):
    """A LoRA that presets name by role. `file` is a glob below the model's `loras`."""

    file: str
    scheduler: Literal["base", "lightning"] = "base"


def _lightning() -> dict[str, LoraRole]:
    return {
        f"lightning-{steps}": LoraRole(file=f"*Lightning-{steps}steps*", scheduler="lightning")
        for steps in (4, 8)
    }


PLACE = r"^[\w-]+(/[\w-]+)*\.\w+$"
"""A file below the model's folder."""


class Example(Frozen):
    """An edit to try. `image`, and `result` if it has one right answer, are below the folder."""

    image: str = Field(pattern=PLACE)
    result: str | None = Field(None, pattern=PLACE)
    prompt: str = Field(pattern=r"^[\w ,.:]+$")


class Sample(Frozen):
    """An edit that a page offers to try at once. `images` are below the folder."""

    images: tuple[Annotated[str, Field(pattern=PLACE)], ...] = Field(min_length=1, max_length=4)
    prompt: str = Field(min_length=1, max_length=200)


class ModelCard(Frozen):
    """Facts of one model. Areas are in pixels; the defaults are 2511's."""

    name: str = "Qwen-Image-Edit-2511"
    canvas_area: int = Field(1024 * 1024, ge=1024)
    vision_area: int = Field(384 * 384, ge=1024)
    loras: dict[str, LoraRole] = Field(default_factory=_lightning)
    prompt_tokens: int = Field(1024, ge=16, description="Text tokens the encoder reads.")
    steps: int = Field(40, ge=1, le=100, description="What the model without a LoRA is run with.")
    true_cfg_scale: float = Field(4.0, ge=0, le=20, description="Its guidance, likewise.")
    preset: str | None = Field(
        None, description="Preset of requests that name none, where `engine.preset` names none."
    )
    latent_rgb: tuple[tuple[float, float, float], ...] | None = Field(
        None, description="Latent channel to RGB, for previews; the last row is the bias."
    )
    example: Example | None = None
    samples: tuple[Sample, ...] = Field((), max_length=24)
    license: str | None = None
    demo: bool = False
    note: str | None = Field(None, description="One line said at start, e.g. what a demo knows.")
    knows: str | None = Field(
        None, description="Sentences for people: what the model can do, where that is little."
    )

    @cached_property
    def pictures(self) -> dict[str, str]:
        """The samples' pictures: by the name of the file its place below the model's folder.

        Of two with one name the first counts.
        """
        places = [place for sample in self.samples for place in sample.images]
        return {place.rpartition("/")[2]: place for place in reversed(places)}


def folder(model: str | Path) -> Path:
    """The folder of `[engine] model`: `demo`, a name that `fetch` knows, or a path."""
    if str(model) == DEMO:
        return DEMO_FOLDER
    return catalogue.folder(str(model)) if str(model) in catalogue.MODELS else Path(model)


def read(model: str) -> ModelCard:
    """The card of `[engine] model`: `demo` or a model folder.

    Raises `ModelMissing` where there is no such folder, `ModelInvalid` for a bad card.
    """
    home = folder(model)
    if not home.is_dir() and model in catalogue.MODELS:
        raise errors.ModelMissing(f"{model} is not there yet: vellumd fetch {model} brings it.")
    if not home.is_dir():
        raise errors.ModelMissing(f"There is no model folder {home.name!r}.")
    file = home / FILE
    if not file.is_file():
        return ModelCard(name=home.name)
    try:
        return ModelCard.model_validate_json(file.read_bytes())
    except ValidationError:
        raise errors.ModelInvalid(f"{FILE} of {home.name!r} is not a model card.") from None


def find_lora(
    model: str | Path, card: ModelCard, configured: dict[str, str], name: str
) -> Path | None:
    """The file of LoRA `name`: configured, by role, or by file name; None if not there."""
    if name in configured:
        return Path(configured[name])
    loras = folder(model) / "loras"
    pattern = card.loras[name].file if name in card.loras else name
    found = sorted(loras.glob(f"{pattern}.safetensors")) if loras.is_dir() else []
    return found[0] if found else None
