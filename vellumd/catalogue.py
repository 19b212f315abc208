"""Models that `vellumd fetch` knows by name, and where it puts them.

`engine.model` may be such a name: it stands for the folder that `fetch` fills.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from vellumd import platform
from vellumd.memory_plan import Sizes

PARTS = ("processor", "scheduler", "text_encoder", "tokenizer", "transformer", "vae")
"""The folders of a model in diffusers layout."""


@dataclass(frozen=True)
class Source:
    """Files of one repository: `files` are globs in it, `into` the model's folder for them."""

    repo: str
    files: tuple[str, ...]
    into: str = ""


@dataclass(frozen=True)
class Entry:
    """Something to fetch. `about_gb` (10^9 bytes) and `license` are what the makers say.

    `sizes`: a model's, as a card holds it.
    """

    title: str
    license: str
    about_gb: float
    sources: tuple[Source, ...]
    sizes: Sizes | None = None

    @property
    def model(self) -> bool:
        """Whether it is a whole model."""
        return self.sizes is not None


def _parts(repo: str) -> Source:
    """A whole model, without pictures, and without pickles, which could run code."""
    kinds = ("json", "txt", "jinja", "safetensors")
    files = (f"{part}/*.{kind}" for part in PARTS for kind in kinds)
    return Source(repo, ("model_index.json", *files))


def _lightning(into: str) -> Source:
    name = "Qwen-Image-Edit-2511-Lightning-{}steps-V1.0-bf16.safetensors"
    files = (name.format(4), name.format(8))
    return Source("lightx2v/Qwen-Image-Edit-2511-Lightning", files, into)


CATALOGUE = {
    "qwen-image-edit-2511": Entry(
        "Qwen-Image-Edit-2511 in bfloat16, with the Lightning LoRAs of 4 and 8 steps",
        "Apache-2.0",
        59.4,
        (_parts("Qwen/Qwen-Image-Edit-2511"), _lightning("loras")),
        Sizes(
            block=227_000_000,
            blocks=60,
            rest=150_000_000,
            modulation=13_600_000_000,
            encoder_layer=466_000_000,
            encoder=15_500_000_000,
            embedding=1_090_000_000,
            vae=250_000_000,
            lora=849_600_000,
        ),  # FP8, the encoder in bfloat16, Lightning beside the weights
    ),
    "lightning-2511": Entry(
        "the Lightning LoRAs alone, for a model folder that is there already (--to FOLDER/loras)",
        "Apache-2.0",
        1.7,
        (_lightning(""),),
    ),
}
"""What can be fetched, by name. Others are opened as folders or files, by their path."""

MODELS = tuple(name for name, entry in CATALOGUE.items() if entry.model)
"""The names that `engine.model` may be."""


def folder(name: str) -> Path:
    """Where `fetch` puts what is called `name`, unless told otherwise."""
    return platform.data_dir() / "models" / name
