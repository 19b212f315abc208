"""The weights of one part, from one file or several: what each tensor is and how it is held.

A `Checkpoint` knows tensors by diffusers' names, whatever tool wrote them, and pairs each
FP8 weight with its scale. It is made from headers, and from the few bytes of ComfyUI's
markers, so it is cheap and says no before time is spent.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

from vellumd import errors
from vellumd.weights import header, names
from vellumd.weights.header import Header, Place

SENTINEL = "__index_timestep_zero__"
"""An empty tensor by which ComfyUI says that a model was trained with zero_cond_t."""

SCALES = (".weight_scale", ".scale_weight")
INPUT_SCALES = (".input_scale", ".scale_input")
MARKER = ".comfy_quant"
OLD_MARKER = "scaled_fp8"
"""ComfyUI's former mark of a file with scales; two values in it mean full precision."""
UNREADABLE = (".weight_scale_2", ".pre_quant_scale", ".weight_codebook", ".weight_s_rel")
"""Companions of formats below eight bits."""
FORMATS = {
    "float8_e4m3fn": "F8_E4M3",
    "float8_e4m3fn_blockwise": "F8_E4M3",
    "float8_e4m3fn_rowwise": "F8_E4M3",
    "float8_e5m2": "F8_E5M2",
}
"""ComfyUI's names of the formats that are read here, and the types they are stored in."""
BLOCK = 128
Block = tuple[int, int]
Shape = tuple[int, ...]
MARKER_MAX = 4096
"""Bytes of a marker that are read; they hold one small JSON object."""

FLOATS = ("BF16", "F16", "F32")
_LIGHTNING = re.compile(r"lightning.*?(\d+)[ _-]?steps", re.IGNORECASE)


class Layout(StrEnum):
    """Who wrote the files, and in which precision."""

    DIFFUSERS = "diffusers_bf16"
    PREDECESSOR_FP8 = "predecessor_fp8"
    """A diffusers folder cast to FP8 without scales."""
    COMFY = "comfy_bf16"
    COMFY_FP8 = "comfy_fp8"
    """A single file cast to FP8 without scales."""
    COMFY_FP8_SCALED = "comfy_fp8_scaled"
    COMFY_FP8_MIXED = "comfy_fp8mixed"
    LIGHTX2V_FP8 = "lightx2v_fp8"
    """FP8 with a scale for each row."""
    LIGHTX2V_FUSED = "lightx2v_fused"
    """The same with a Lightning LoRA inside."""


class Scaling(StrEnum):
    """How many weights share a scale."""

    NONE = "none"
    SCALAR = "scalar"
    ROW = "row"
    BLOCK = "block"


@dataclass(frozen=True)
class Weight:
    """One tensor under diffusers' name: where it lies, and the scale that belongs to it.

    What it means is stored · scale: one scale, one for each row, or one for each block.
    """

    name: str
    place: Place
    scale: Place | None = None
    scaling: Scaling = Scaling.NONE
    block: Block | None = None
    """Rows and columns that share a scale, where they do by block."""
    input_scale: Place | None = None
    full_precision: bool = False
    """Whether the file asks for matrix products in 16 bits, not in FP8."""


@dataclass(frozen=True)
class Checkpoint:
    """The weights of one part."""

    part: str
    layout: Layout
    weights: Mapping[str, Weight]
    files: tuple[Path, ...]
    sentinel: bool = False
    """Whether the files hold ComfyUI's mark of zero_cond_t."""

    @property
    def nbytes(self) -> int:
        """Bytes to read, scales included."""
        places = (
            place for weight in self.weights.values() for place in (weight.place, weight.scale)
        )
        return sum(place.nbytes for place in places if place)

    @property
    def count(self) -> int:
        """Values in all weights."""
        return sum(weight.place.count for weight in self.weights.values())

    @property
    def is_plain_fp8(self) -> bool:
        """Whether matrices are FP8 without scales: rounded coarsely, small ones to zero."""
        return any(
            weight.place.is_fp8 and weight.scale is None and len(weight.place.shape) == 2
            for weight in self.weights.values()
        )

    def check(
        self, promised: Mapping[str, Shape], found: Mapping[str, Shape] | None = None
    ) -> None:
        """Raise `ModelInvalid` naming what is missing, of another shape, or unknown.

        `found` are the shapes by name where they are not simply those of the files.
        """
        if found is None:
            found = {name: weight.place.shape for name, weight in self.weights.items()}
        if missing := sorted(promised.keys() - found.keys()):
            raise self._wrong(f"lacks {_some(missing)}")
        if unknown := sorted(found.keys() - promised.keys()):
            raise self._wrong(f"has tensors that its config.json does not know: {_some(unknown)}")
        for name, shape in promised.items():
            if found[name] != shape:
                raise self._wrong(
                    f"has tensors of another size: {name} is {list(found[name])} and should be "
                    f"{list(shape)}"
                )

    def _wrong(self, what: str) -> errors.ModelInvalid:
        return errors.ModelInvalid(f"The model's {self.part} {what}.")


def _some(found: Sequence[str]) -> str:
    """The first of names, and how many more there are."""
    more = f" and {len(found) - 1} more" if len(found) > 1 else ""
    return f"{found[0][:80]}{more}"


def folder(home: Path, part: str) -> Checkpoint:
    """The weights in a folder of the diffusers layout.

    Raises `ModelInvalid` where there are none (a pickle is named, never opened), where the
    index names a file that is not there, and for what `of` refuses.
    """
    with header.readable(f"The model's {part}"):
        there = sorted(home.iterdir())
    files = [file for file in there if file.suffix == ".safetensors"]
    for index in (file for file in there if file.name.endswith(".safetensors.index.json")):
        if lost := sorted(_indexed(index) - {file.name for file in files}):
            raise errors.ModelInvalid(f"The model's {part} lacks the file {lost[0]}.")
    if not files:
        for other in there:
            if other.suffix in (*header.PICKLES, ".gguf"):
                header.read(other)  # says what it is
        raise errors.ModelInvalid(f"The model's {part} has no .safetensors file.")
    return of(part, files, single=False)


def _indexed(index: Path) -> set[str]:
    try:
        return set(json.loads(index.read_text("utf-8"))["weight_map"].values())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise errors.ModelInvalid(f"The file {header.told(index)} is damaged.") from None


def of(part: str, files: Sequence[Path], *, single: bool = True) -> Checkpoint:
    """The weights of `part` in `files`; `single` where a file stands for itself.

    Raises `ModelInvalid` for damaged files, those of another part or model, formats that
    cannot be read, and scales that belong to nothing.
    """
    found = [header.read(file) for file in files]
    raw = _merged(found)
    _refuse_others(part, files[0], raw)
    sorter = _Sorter(part)
    for name, place in raw.items():
        sorter.take(name, place)
    for head in found:
        sorter.take_metadata(head.metadata)
    weights = sorter.weights()
    # Fusing a LoRA changes values, neither names nor shapes: nothing but the file's name tells.
    fused = single and part == names.TRANSFORMER and lightning_steps(files[0].stem) is not None
    layout = _layout(weights.values(), marked=sorter.marked, single=single, fused=fused)
    return Checkpoint(part, layout, weights, tuple(files), sorter.sentinel)


def _merged(found: Iterable[Header]) -> dict[str, Place]:
    raw: dict[str, Place] = {}
    for head in found:
        for name, place in head.tensors.items():
            if name in raw:
                raise errors.ModelInvalid(
                    f"The files {raw[name].file.name} and {place.file.name} both hold {name[:80]}."
                )
            raw[name] = place
    return raw


def _refuse_others(part: str, file: Path, raw: Mapping[str, Place]) -> None:
    """Tell what the files hold, if it is not `part`."""
    if any(".lora_" in name or ".lora." in name for name in raw):
        raise errors.ModelInvalid(
            f"The file {header.told(file)} is a LoRA, no {part}: name it in [engine.loras]."
        )
    there = names.part_of(raw)
    if there is None:
        raise errors.ModelInvalid(
            f"The file {header.told(file)} holds no {part} of Qwen-Image-Edit."
        )
    if there != part:
        raise errors.ModelInvalid(f"The file {header.told(file)} holds a {there}, no {part}.")
    if names.is_all_in_one(raw):
        raise errors.ModelInvalid(
            f"The file {header.told(file)} holds several parts in one. Take the files of "
            "transformer, text encoder and VAE."
        )


def lightning_steps(name: str) -> int | None:
    """The steps that a file's name says a Lightning LoRA is made for, inside or alone."""
    found = _LIGHTNING.search(name)
    return int(found[1]) if found else None


def _layout(weights: Iterable[Weight], *, marked: bool, single: bool, fused: bool) -> Layout:
    stored = list(weights)
    scalings = {weight.scaling for weight in stored if weight.scale}
    if Scaling.ROW in scalings and not marked:
        return Layout.LIGHTX2V_FUSED if fused else Layout.LIGHTX2V_FP8
    if scalings:
        return Layout.COMFY_FP8_MIXED if marked else Layout.COMFY_FP8_SCALED
    if any(weight.place.is_fp8 for weight in stored):
        return Layout.COMFY_FP8 if single else Layout.PREDECESSOR_FP8
    return Layout.COMFY if single else Layout.DIFFUSERS


class _Sorter:
    """Sorts the tensors of one part's files into weights and what belongs to them."""

    def __init__(self, part: str) -> None:
        self._part = part
        self._canonical = names.canonical(part)
        self._plain: dict[str, Place] = {}
        self._scales: dict[str, Place] = {}
        self._input_scales: dict[str, Place] = {}
        self._settings: dict[str, dict[str, Any]] = {}
        self._full_precision = False
        self.marked = False
        self.sentinel = False

    def take(self, name: str, place: Place) -> None:
        """Put a tensor where it belongs; of those without use nothing stays."""
        bare = names.unprefixed(name)
        if bare == SENTINEL:
            self.sentinel = True
        elif bare == OLD_MARKER:
            self._full_precision = place.count == 2
        elif name.endswith(MARKER):
            self.marked = True
            self._mark(name.removesuffix(MARKER), _json(place))
        elif name.endswith(UNREADABLE):
            raise self._unsupported(place.file, name.rpartition(".")[2])
        elif not name.endswith(".comfy_attention.config"):
            self._put(name, place)

    def _put(self, name: str, place: Place) -> None:
        target = self._plain
        for ending in (*SCALES, *INPUT_SCALES):
            if name.endswith(ending):
                name = f"{name.removesuffix(ending)}.weight"
                target = self._scales if ending in SCALES else self._input_scales
        known = self._canonical(name)
        if known in target:
            raise self._wrong(f"holds {known} under two names")
        if known is not None:
            target[known] = place

    def _mark(self, layer: str, settings: dict[str, Any]) -> None:
        known = self._canonical(f"{layer}.weight")
        if known is not None:
            self._settings[known] = settings

    def take_metadata(self, metadata: Mapping[str, str]) -> None:
        """Take ComfyUI's table of layers, which stands for markers."""
        if (text := metadata.get("_quantization_metadata")) is None:
            return
        self.marked = True
        try:
            for layer, settings in json.loads(text)["layers"].items():
                self._mark(layer, dict(settings))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            raise self._wrong("has a garbled table of its formats") from None

    def weights(self) -> dict[str, Weight]:
        """Every weight with its scale; raises `ModelInvalid` for what fits nothing."""
        for name, settings in self._settings.items():
            self._apply(name, settings)
        made = {name: self._weight(name, place) for name, place in self._plain.items()}
        scaled = {name for name, weight in made.items() if weight.scale}
        if unused := (self._scales.keys() | self._input_scales.keys()) - scaled:
            raise self._wrong(f"has scales that belong to no FP8 weight: {_some(sorted(unused))}")
        matrices = {n for n, w in made.items() if w.place.is_fp8 and len(w.place.shape) > 1}
        if (scaled or self._settings) and (bare := matrices - scaled):
            raise self._wrong(f"lacks the scale of {_some(sorted(bare))}")
        return made

    def _apply(self, name: str, settings: dict[str, Any]) -> None:
        """What ComfyUI's marker says of a layer: FP8 may lie in bytes that call themselves U8."""
        place = self._plain.get(name)
        said = str(settings.get("format"))
        if said not in FORMATS:
            raise self._unsupported(place.file if place else None, f"{said[:40]!a}")
        if place and place.dtype == "U8":
            self._plain[name] = replace(place, dtype=FORMATS[said])

    def _weight(self, name: str, place: Place) -> Weight:
        if place.dtype not in FLOATS and not place.is_fp8:
            raise self._unsupported(place.file, place.dtype)
        scale = self._scales.get(name)
        if scale is None or not place.is_fp8:
            return Weight(name, place)
        if scale.dtype not in FLOATS:
            raise self._unsupported(place.file, f"scales of type {scale.dtype}")
        return Weight(
            name,
            place,
            scale,
            *self._scaling(name, place, scale),
            self._input_scales.get(name),
            self._full_precision
            or bool(self._settings.get(name, {}).get("full_precision_matrix_mult")),
        )

    def _scaling(self, name: str, place: Place, scale: Place) -> tuple[Scaling, Block | None]:
        """How `scale` spreads over the weight; by its shape, since every tool names it alike."""
        if scale.count == 1:
            return Scaling.SCALAR, None
        if len(place.shape) == 2 and scale.shape in (place.shape[:1], (place.shape[0], 1)):
            return Scaling.ROW, None
        if len(place.shape) == len(scale.shape) == 2:
            sides = zip(place.shape, scale.shape, strict=True)
            rows, columns = (_block_side(size, blocks) for size, blocks in sides)
            if rows and columns:
                return Scaling.BLOCK, (rows, columns)
        raise self._wrong(
            f"has a scale {list(scale.shape)} that does not fit {name} {list(place.shape)}"
        )

    def _wrong(self, what: str) -> errors.ModelInvalid:
        return errors.ModelInvalid(f"The model's {self._part} {what}.")

    def _unsupported(self, file: Path | None, what: str) -> errors.ModelInvalid:
        where = f"The file {header.told(file)}" if file else f"The model's {self._part}"
        return errors.ModelInvalid(
            f"{where} holds weights in a format that is not supported ({what}). bfloat16, and "
            "FP8 with or without scales, are."
        )


def _block_side(size: int, blocks: int) -> int | None:
    """Weights along a block's side, where `size` of them have that many scales.

    128 is what everybody uses, with a smaller last block; others must divide evenly.
    """
    if blocks == -(-size // BLOCK):
        return BLOCK
    return size // blocks if blocks and size % blocks == 0 else None


def _json(place: Place) -> dict[str, Any]:
    """What a marker says: UTF-8 bytes of one JSON object."""
    try:
        with place.file.open("rb") as opened:
            opened.seek(place.offset)
            found = json.loads(opened.read(min(place.nbytes, MARKER_MAX)))
    except (OSError, ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise errors.ModelInvalid(
            f"The file {header.told(place.file)} has a garbled marker of its format."
        )
    return found
