"""Weight files: safetensors only, checked before use, read tensor by tensor."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from vellumd import errors
from vellumd.engine.precision import Fitting

SENTINEL = "__index_timestep_zero__"
"""An empty tensor by which some files say that the model was trained with zero_cond_t."""


def shards(folder: Path, part: str) -> list[Path]:
    """The safetensors files of `folder`, each one whole.

    `part` names the folder in errors. Raises `ModelInvalid` where there is none (a
    pickle is never opened), where the index names a missing file, or for a damaged one.
    """
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise errors.ModelInvalid(f"The model's {part} has no .safetensors file.")
    for index in folder.glob("*.safetensors.index.json"):
        named = set(json.loads(index.read_text("utf-8"))["weight_map"].values())
        if missing := sorted(named - {file.name for file in files}):
            raise errors.ModelInvalid(f"The model's {part} lacks {missing[0]}.")
    for file in files:
        check(file, part)
    return files


def check(file: Path, part: str) -> None:
    """Raise `ModelInvalid` unless the header of `file` fits its size."""
    try:
        with safe_open(file, "pt"):
            pass
    except (SafetensorError, OSError):
        raise errors.ModelInvalid(f"The file {file.name} of {part} is damaged.") from None


def as_it_is(name: str, tensor: Tensor) -> Tensor:
    """The tensor itself: most models are what their files hold."""
    return tensor


def fill(
    model: torch.nn.Module,
    files: list[Path],
    part: str,
    device: torch.device,
    dtype: torch.dtype,
    read: Callable[[int], None],
    adapt: Callable[[str, Tensor], Tensor | None] = as_it_is,
    fit: Fitting | None = None,
) -> None:
    """Give `model`, built without weights, those of `files`.

    Tensors go straight to `device` as `dtype`, so the host never holds the model.
    `read` is told the bytes of each; `adapt` makes of a name's stored tensor the model's,
    or None of one it has no use for. Instead of the cast, `fit` can make of a tensor on the
    device those that the model holds. Raises `ModelInvalid` for tensors too many, too few
    or of another shape.
    """
    for file in files:
        tensors: dict[str, Tensor] = {}
        with safe_open(file, "pt") as shard:
            for name in shard.keys():  # noqa: SIM118 (no dict)
                if name != SENTINEL:
                    stored = shard.get_tensor(name)
                    tensor = adapt(name, stored)
                    if tensor is not None and fit is not None:
                        tensors.update(fit(name, tensor.to(device)))
                    elif tensor is not None:
                        tensors[name] = tensor.to(device, dtype)
                    read(stored.nbytes)
        try:
            unexpected = model.load_state_dict(tensors, strict=False, assign=True).unexpected_keys
        except RuntimeError:
            raise errors.ModelInvalid(f"The model's {part} has tensors of another size.") from None
        if unexpected:
            raise errors.ModelInvalid(f"The model's {part} has unknown tensors.")
    if fit is not None:
        fit.finish()
    if any(parameter.is_meta for parameter in model.parameters()):
        raise errors.ModelInvalid(f"The model's {part} lacks tensors.")
