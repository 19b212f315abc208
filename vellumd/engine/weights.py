"""A model that was built without weights gets those of its checkpoint."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from vellumd import errors
from vellumd.engine.reading import Reader, StoredTensor
from vellumd.weights.checkpoint import Checkpoint

Adapt = Callable[[str, Tensor], Tensor | None]
"""Makes of a name's stored tensor the model's, or None of one it has no use for."""
Fit = Callable[[StoredTensor], dict[str, Tensor]]
"""Makes of a stored tensor, on its device, those that the model holds, by their names."""


def dense(dtype: torch.dtype, adapt: Adapt | None = None) -> Fit:
    """Holds every weight as `dtype`, scales multiplied in."""

    def fit(stored: StoredTensor) -> dict[str, Tensor]:
        name, tensor = stored.stored.name, stored.dense(dtype)
        fitted = adapt(name, tensor) if adapt else tensor
        return {} if fitted is None else {name: fitted}

    return fit


def fill(
    model: torch.nn.Module,
    checkpoint: Checkpoint,
    reader: Reader,
    fit: Fit,
    skips: Callable[[str], bool] = lambda name: False,
) -> None:
    """Give `model`, whose parameters are on meta, the weights of `checkpoint`.

    Those that `skips` names are not read, and may stay on meta.

    Tensors go straight to the reader's device, so the host never holds the model. Raises
    `ModelInvalid` where the model then lacks some, or has others.
    """
    tensors: dict[str, Tensor] = {}
    wanted = [weight for name, weight in checkpoint.weights.items() if not skips(name)]
    for stored in reader.tensors(wanted):
        tensors.update(fit(stored))
    try:
        unknown = model.load_state_dict(tensors, strict=False, assign=True).unexpected_keys
    except RuntimeError:
        raise errors.ModelInvalid(
            f"The model's {checkpoint.part} has tensors of another size."
        ) from None
    if unknown:
        raise errors.ModelInvalid(f"The model's {checkpoint.part} has unknown tensors.")
    if any(found.is_meta and not skips(name) for name, found in model.named_parameters()):
        raise errors.ModelInvalid(f"The model's {checkpoint.part} lacks tensors.")


def check(model: torch.nn.Module, checkpoint: Checkpoint, adapt: Adapt) -> None:
    """Raise `ModelInvalid`, before anything is read, unless `checkpoint` fits `model`.

    For the VAE, whose shapes no `vellumd.weights.shapes` derives.
    """
    found = {}
    for weight in checkpoint.weights.values():
        tensor = adapt(weight.name, torch.empty(weight.place.shape, device="meta"))
        if tensor is not None:
            found[weight.name] = tuple(tensor.shape)
    checkpoint.check({n: tuple(p.shape) for n, p in model.named_parameters()}, found)
