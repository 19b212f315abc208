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
from vellumd.models import SIZE_MAX, Frozen
from vellumd.settings import EngineSettings
from vellumd.weights import checkpoint, header
from vellumd.weights.model import COMFY_TRANSFORMERS, Model, base_of, open_model

FILE = "vellumd.json"
DEMO = "demo"
DEMO_FOLDER = Path(__file__).parent / "demo" / "model"


class LoraRole(Frozen):
    """A LoRA that presets name by role. `file` is a glob below the model's `loras`."""

    file: str = Field(pattern=r"^\*?([^/\\*]+\*?)+$")
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
    largest_area: int = Field(
        SIZE_MAX**2, ge=1024, description="Largest result that a size of WIDTHxHEIGHT asks for."
    )
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
    fused: str | None = Field(
        None, description="Role of the LoRA that is inside the weights and always takes part."
    )
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
    """The path of `[engine] model`: `demo`, a name that `fetch` knows, or a path."""
    if str(model) == DEMO:
        return DEMO_FOLDER
    return catalogue.folder(str(model)) if str(model) in catalogue.MODELS else Path(model)


def home(engine: EngineSettings) -> Path:
    """The folder with what belongs to the model: of a single file, its base."""
    path = folder(engine.model)
    return path if path.is_dir() else base_of(path, folder(engine.base) if engine.base else None)


def opened(engine: EngineSettings) -> Model:
    """The model that is configured, known by its headers; raises as `open_model` does."""
    base = folder(engine.base) if engine.base else None
    return open_model(folder(engine.model), base, engine.zero_cond_t, engine.causal)


def of(engine: EngineSettings) -> ModelCard:
    """The card of the model that is configured; see `read`."""
    return read(engine.model, engine.base)


def read(model: str, base: str | None = None) -> ModelCard:
    """The card of `[engine] model`: `demo`, a model folder, or a single file.

    A file goes by its own name and has the facts of its base folder; its name also tells
    of a Lightning LoRA inside. Raises `ModelMissing` where there is no such model or base,
    `ModelInvalid` for a bad card and for what cannot be read.
    """
    path = folder(model)
    with header.readable(f"The model {path.name!r}"):
        return _read(model, path, base)


def _read(model: str, path: Path, base: str | None) -> ModelCard:
    if not path.exists() and model in catalogue.MODELS:
        raise errors.ModelMissing(f"{model} is not there yet: vellumd fetch {model} brings it.")
    if not path.exists():
        raise errors.ModelMissing(f"There is no model {path.name!r}.")
    if path.is_dir():
        return _facts(path)
    card = _facts(base_of(path, folder(base) if base else None))
    steps = checkpoint.lightning_steps(path.stem)
    fused = f"lightning-{steps}" if steps else None
    return card.model_copy(update={"name": path.stem, "fused": card.fused or fused})


def _facts(home: Path) -> ModelCard:
    file = home / FILE
    if not file.is_file():
        return ModelCard(name=home.name)
    try:
        return ModelCard.model_validate_json(file.read_bytes())
    except ValidationError:
        raise errors.ModelInvalid(f"{FILE} of {home.name!r} is not a model card.") from None


def lora_folders(model: str | Path, base: str | Path | None = None) -> list[Path]:
    """Where LoRAs of a model lie: in its own `loras`, beside its file, in ComfyUI's folder."""
    path = folder(model)
    if path.is_dir():
        return [path / "loras"]
    homes = [path.parent, *([folder(base)] if base else [])]
    homes += [above.parent for above in path.absolute().parents if above.name in COMFY_TRANSFORMERS]
    return [home / "loras" for home in homes]


def find_lora(
    model: str | Path,
    card: ModelCard,
    configured: dict[str, str],
    name: str,
    base: str | Path | None = None,
) -> Path | None:
    """The file of LoRA `name`: configured, by role, or by file name; None if not there."""
    if name in configured:
        return Path(configured[name])
    pattern = card.loras[name].file if name in card.loras else name
    for home in lora_folders(model, base):
        if found := sorted(home.glob(f"{pattern}.safetensors")) if home.is_dir() else []:
            return found[0]
    return None
