"""Where the parts of a model lie: in one diffusers folder, or around a single file.

A folder holds everything. A single file holds the transformer alone; processor, scheduler
and the parts' `config.json` come from a *base* folder in the diffusers layout, and so do
text encoder and VAE, unless they lie beside the file as ComfyUI keeps them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vellumd import errors
from vellumd.weights import checkpoint, header, names, shapes
from vellumd.weights.checkpoint import Checkpoint

INDEX = "model_index.json"
COMFY_TRANSFORMERS = ("diffusion_models", "unet")
"""ComfyUI's folders of transformers."""
COMFY_BESIDE = {names.TEXT_ENCODER: ("text_encoders", "clip"), names.VAE: ("vae",)}
"""Its folders of the other parts, beside those."""
CAUSAL = "QwenImageTransformerCausal2DModel"
"""Class of transformers whose references are causal (ModelTC/Qwen-Image-Edit-Causal)."""
PROMISES = {names.TRANSFORMER: shapes.transformer, names.TEXT_ENCODER: shapes.text_encoder}


@dataclass(frozen=True)
class Model:
    """A model whose headers were read and found to be whole."""

    transformer: Checkpoint
    text_encoder: Checkpoint
    vae: Checkpoint
    configs: Mapping[str, dict[str, Any]]
    """The `config.json` of each part, the transformer's with zero_cond_t decided and whole."""
    base: Path
    """Folder of processor, scheduler and configurations."""
    told_by: str
    """What decided zero_cond_t: `settings`, `config`, `sentinel` or `causal`."""
    causal: bool = False
    """Whether each reference picture looks at nothing but itself, and so at time zero."""

    @property
    def parts(self) -> tuple[Checkpoint, Checkpoint, Checkpoint]:
        """The parts with weights, in the order in which they are loaded."""
        return self.text_encoder, self.vae, self.transformer

    @property
    def zero_cond_t(self) -> bool:
        """Whether reference pictures are seen at time zero, as 2511 was trained."""
        return bool(self.configs[names.TRANSFORMER]["zero_cond_t"])

    @property
    def nbytes(self) -> int:
        """Bytes of weights to read."""
        return sum(part.nbytes for part in self.parts)

    @property
    def files(self) -> tuple[Path, ...]:
        """The weight files, in the order in which they are read."""
        return tuple(file for part in self.parts for file in part.files)


def open_model(
    path: Path,
    base: Path | None = None,
    zero_cond_t: bool | None = None,
    causal: bool | None = None,
) -> Model:
    """The model at `path`, a folder or a single file, known by headers.

    `zero_cond_t` is what the user says of it; without that the transformer's config.json
    tells, then ComfyUI's sentinel. `causal` likewise, without which the class that the
    config.json names tells; it implies the other. Raises `ModelMissing` for what is not there and
    `ModelInvalid` naming the part that is damaged, incomplete or of another model, and
    where nothing tells zero_cond_t.
    """
    home = base_of(path, base)
    found = {part: _locate(part, path, home) for part in names.PARTS}
    configs = {part: _config(home, part) for part in names.PARTS}
    for part, promise in PROMISES.items():
        found[part].check(_promised(part, promise, configs[part]))
    own = path.is_dir()
    if causal is None:
        causal = own and configs[names.TRANSFORMER].get("_class_name") == CAUSAL
    flag, told_by = (
        (True, "causal")
        if causal
        else _zero_cond_t(found[names.TRANSFORMER], configs, own, zero_cond_t)
    )
    configs[names.TRANSFORMER] = {
        **shapes.TRANSFORMER, **configs[names.TRANSFORMER], "zero_cond_t": flag,
    }  # fmt: skip
    for part in ("processor", "scheduler"):
        if not (home / part).is_dir():
            raise errors.ModelInvalid(f"The model's {part} is missing.")
    return Model(
        transformer=found[names.TRANSFORMER],
        text_encoder=found[names.TEXT_ENCODER],
        vae=found[names.VAE],
        configs=configs,
        base=home,
        told_by=told_by,
        causal=causal,
    )


def base_of(path: Path, base: Path | None = None) -> Path:
    """The diffusers folder that stands around `path`: itself, `base`, or the nearest above.

    Raises `ModelMissing` where there is none, `ModelInvalid` where it cannot be read.
    """
    with header.readable(f"The model {path.name!r}"):
        return _base_of(path, base)


def _base_of(path: Path, base: Path | None) -> Path:
    if path.is_dir():
        if not (path / INDEX).is_file():
            raise errors.ModelInvalid(f"The model folder has no {INDEX}.")
        return path
    if not path.is_file():
        raise errors.ModelMissing(f"There is no model {path.name!r}.")
    if base is not None:
        if not (base / INDEX).is_file():
            raise errors.ModelMissing(f"The folder of engine.base has no {INDEX}.")
        return base
    for folder in path.absolute().parents:
        if (folder / INDEX).is_file():
            return folder
    raise errors.ModelMissing(
        f"{path.name} is a transformer alone. Set engine.base to the model's folder in the "
        "diffusers layout; of its weights only what does not lie beside the file is needed."
    )


def _locate(part: str, path: Path, home: Path) -> Checkpoint:
    """The weights of `part`: the file itself, those of the base, or those beside the file."""
    if part == names.TRANSFORMER and not path.is_dir():
        return checkpoint.of(part, [path])
    folder = home / part
    if path.is_dir() or any(folder.glob("*.safetensors")):
        return checkpoint.folder(folder, part)
    if beside := beside_in_comfy(part, path):
        return checkpoint.of(part, [beside])
    raise errors.ModelMissing(
        f"There is no {part} to {path.name}: put its file beside it as ComfyUI does "
        f"({' or '.join(COMFY_BESIDE[part])}), or its weights into engine.base."
    )


def beside_in_comfy(part: str, path: Path) -> Path | None:
    """The file of `part` in ComfyUI's folders around the transformer `path`, by its keys.

    The largest of several: it is stored most exactly.
    """
    for folder in path.absolute().parents:
        if folder.name in COMFY_TRANSFORMERS:
            files = [
                file
                for name in COMFY_BESIDE[part]
                for file in (folder.parent / name).rglob("*.safetensors")
                if _holds(part, file)
            ]
            return max(files, key=lambda file: (file.stat().st_size, file.name), default=None)
    return None


def _holds(part: str, file: Path) -> bool:
    try:
        return names.part_of(header.read(file).tensors) == part
    except errors.ModelInvalid:
        return False  # it may be anybody's


def _config(home: Path, part: str) -> dict[str, Any]:
    try:
        found = json.loads((home / part / "config.json").read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise errors.ModelInvalid(f"The model's {part} has no whole config.json.")
    return found


def _promised(part: str, promise: Any, config: dict[str, Any]) -> shapes.Shapes:
    try:
        promised: shapes.Shapes = promise(config)
    except (TypeError, AttributeError, ValueError, ArithmeticError):
        raise errors.ModelInvalid(f"The model's {part} has no whole config.json.") from None
    return promised


def _zero_cond_t(
    transformer: Checkpoint,
    configs: Mapping[str, dict[str, Any]],
    own: bool,
    said: bool | None,
) -> tuple[bool, str]:
    """The flag, and what told it; `own` where config.json is that of these weights.

    It adds no tensors, and a wrong one silently makes worse edits, so nothing is guessed.
    """
    config = configs[names.TRANSFORMER].get("zero_cond_t")
    if said is not None:
        return said, "settings"
    if own and config is not None:
        if transformer.sentinel and not config:
            raise errors.ModelInvalid(
                "The transformer's config.json says zero_cond_t = false, and a mark in its file "
                "says true. Set engine.zero_cond_t: true for Qwen-Image-Edit-2511."
            )
        return bool(config), "config"
    if transformer.sentinel:
        return True, "sentinel"
    raise errors.ModelInvalid(
        "Nothing tells whether this transformer was trained with zero_cond_t. Set "
        "engine.zero_cond_t: true for Qwen-Image-Edit-2511, false for 2509 and the first one."
    )
