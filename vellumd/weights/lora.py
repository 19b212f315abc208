"""A LoRA file by its header: which linears it changes, in whatever dialect it is written.

A LoRA adds scale · B · A to a linear's weight, A [rank, in] and B [out, rank], where scale
is alpha / rank (Hu et al. 2021); without an alpha it is 1. The rank is read off the
shapes.

| Dialect | A name |
|---|---|
| diffusers, peft | `transformer.transformer_blocks.0.attn.to_q.lora_A.weight` |
| ComfyUI, LightX2V | `diffusion_model.transformer_blocks.0.attn.to_q.lora_down.weight`, `.alpha` |
| kohya | `lora_unet_transformer_blocks_0_attn_to_q.lora_down.weight`, `.alpha` |
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vellumd import errors
from vellumd.weights import header
from vellumd.weights.checkpoint import FLOATS, Checkpoint, lightning_steps
from vellumd.weights.header import Place

PREFIXES = (
    "base_model.model.", "model.diffusion_model.", "diffusion_model.", "transformer.",
)  # fmt: skip
"""What tools write before a module's name; one after the other, as peft wraps others."""
KOHYA = ("lora_unet_", "lycoris_")
"""The same of tools that write underscores for dots."""
ENCODERS = ("lora_te", "text_encoder", "lora_clip")
"""Beginnings of names that change a text encoder, which stays as it is here."""

_DOWN = re.compile(r"^(.+?)\.lora(?:_A|_down|\.down|_A\.\w+|_down\.\w+)\.weight$")
_UP = re.compile(r"^(.+?)\.lora(?:_B|_up|\.up|_B\.\w+|_up\.\w+)\.weight$")
_ALPHA = re.compile(r"^(.+?)\.alpha$")
_OTHER_KINDS = (
    "lokr_",
    "hada_",
    "dora_scale",
    "lora_magnitude_vector",
    "oft_",
    ".diff",
    "lora_mid",
)
PEFT_KEY = "lora_adapter_metadata"
"""Metadata in which diffusers keeps peft's settings, alpha among them."""


@dataclass(frozen=True)
class Pair:
    """What a LoRA does to one linear: `down` is A [rank, in], `up` is B [out, rank]."""

    down: Place
    up: Place
    alpha: Place | float | None = None

    @property
    def rank(self) -> int:
        """Width of the bottleneck."""
        return self.down.shape[0]


@dataclass(frozen=True)
class LoraFile:
    """A LoRA: pairs by the name of the linear that they change."""

    file: Path
    pairs: Mapping[str, Pair]

    @property
    def steps(self) -> int | None:
        """Steps that it was distilled for, as a Lightning file's name says."""
        return lightning_steps(self.file.stem)

    @property
    def nbytes(self) -> int:
        """Bytes of all pairs."""
        return sum(pair.down.nbytes + pair.up.nbytes for pair in self.pairs.values())


def read(file: Path, transformer: Checkpoint) -> LoraFile:
    """The LoRA in `file`, found to fit every linear of `transformer` that it names.

    Raises `ModelInvalid` for a damaged file, one that is no LoRA or of another kind
    (LoKr, LoHa, DoRA), and one made for another model: by name or by shape.
    """
    head = header.read(file)
    linears = {
        name.removesuffix(".weight"): weight.place.shape
        for name, weight in transformer.weights.items()
        if name.endswith(".weight") and len(weight.place.shape) == 2
    }
    sorted_ = _Names(file, linears)
    for name, place in head.tensors.items():
        sorted_.take(name, place)
    pairs = sorted_.pairs(_peft_alphas(head.metadata, file))
    for name, pair in pairs.items():
        _check(file, name, pair, linears[name])
    return LoraFile(file, pairs)


def _check(file: Path, name: str, pair: Pair, shape: tuple[int, ...]) -> None:
    rows, columns = shape
    down, up = pair.down.shape, pair.up.shape
    if len(down) != 2 or len(up) != 2 or (up[0], down[1]) != (rows, columns) or up[1] != down[0]:
        raise errors.ModelInvalid(
            f"The LoRA {file.name} is made for another model: for {name} it has {list(down)} and "
            f"{list(up)}, the weight is {list(shape)}."
        )


class _Names:
    """Sorts a LoRA's tensors by the linears that they belong to."""

    def __init__(self, file: Path, linears: Iterable[str]) -> None:
        self._file = file
        self._linears = set(linears)
        self._flat = {name.replace(".", "_"): name for name in self._linears}
        self._found: dict[str, dict[str, Place]] = {"down": {}, "up": {}, "alpha": {}}

    def take(self, name: str, place: Place) -> None:
        """Put one tensor where it belongs."""
        if any(kind in name for kind in _OTHER_KINDS):
            raise self._wrong(f"is of a kind that is not supported ({name[:80]})")
        for kind, pattern in (("down", _DOWN), ("up", _UP), ("alpha", _ALPHA)):
            if found := pattern.match(name):
                if place.dtype not in FLOATS:
                    raise self._wrong(f"holds values of type {place.dtype}")
                linear = self._linear(found[1])
                if linear in self._found[kind]:
                    raise self._wrong(f"changes {linear} twice")
                self._found[kind][linear] = place
                return
        raise self._wrong(f"holds what is no LoRA ({name[:80]})")

    def _linear(self, name: str) -> str:
        """The linear that a file's name means."""
        if name.startswith(ENCODERS):
            raise self._wrong("changes a text encoder, which is not supported")
        for prefix in KOHYA:
            if name.startswith(prefix):
                return self._known(self._flat.get(name.removeprefix(prefix)), name)
        bare = name
        for prefix in PREFIXES:
            bare = bare.removeprefix(prefix)
        return self._known(bare if bare in self._linears else None, name)

    def _known(self, linear: str | None, name: str) -> str:
        if linear is None:
            raise errors.ModelInvalid(
                f"The LoRA {self._file.name} is made for another model: this one has no "
                f"{name[:80]}."
            )
        return linear

    def pairs(self, alphas: _Alphas) -> dict[str, Pair]:
        """All of them; raises `ModelInvalid` for halves, and where there is none."""
        down, up, alpha = self._found["down"], self._found["up"], self._found["alpha"]
        if not down and not up:
            raise self._wrong("is no LoRA")
        if halves := sorted(down.keys() ^ up.keys()):
            raise self._wrong(f"lacks half of what it does to {halves[0]}")
        if lonely := sorted(alpha.keys() - down.keys()):
            raise self._wrong(f"has an alpha alone for {lonely[0]}")
        if wrong := sorted(name for name, place in alpha.items() if place.count != 1):
            raise self._wrong(f"has an alpha of several values for {wrong[0]}")
        if any(min(place.shape, default=0) == 0 for place in (*down.values(), *up.values())):
            raise self._wrong("has a rank of 0")
        return {name: Pair(down[name], up[name], alpha.get(name, alphas.of(name))) for name in down}

    def _wrong(self, what: str) -> errors.ModelInvalid:
        return errors.ModelInvalid(f"The LoRA {self._file.name} {what}.")


@dataclass(frozen=True)
class _Alphas:
    """Alphas as peft tells them beside the tensors: one for all, others by module."""

    common: float | None
    single: Mapping[str, float]

    def of(self, linear: str) -> float | None:
        """The alpha of a linear, by the longest pattern that ends its name."""
        fitting = [name for name in self.single if linear == name or linear.endswith(f".{name}")]
        return self.single[max(fitting, key=len)] if fitting else self.common


def _peft_alphas(metadata: Mapping[str, str], file: Path) -> _Alphas:
    text = metadata.get(PEFT_KEY)
    if text is None:
        return _Alphas(None, {})
    try:
        found: dict[str, Any] = json.loads(text)
        told = {name.removeprefix("transformer."): value for name, value in found.items()}
        common = told.get("lora_alpha")
        single = {str(k): float(v) for k, v in (told.get("alpha_pattern") or {}).items()}
        if told.get("use_rslora"):
            raise errors.ModelInvalid(
                f"The LoRA {file.name} is of a kind that is not supported (rsLoRA)."
            )
        return _Alphas(None if common is None else float(common), single)
    except (ValueError, TypeError, AttributeError, OverflowError, RecursionError):
        raise errors.ModelInvalid(f"The LoRA {file.name} has garbled settings.") from None
