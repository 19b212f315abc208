"""A model that was built without weights gets those of its checkpoint."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from vellumd import errors
from vellumd.engine.reading import Reader, StoredTensor
from vellumd.weights.checkpoint import Checkpoint

Adapt = Callable[[str, Tensor], Tensor | None]
Hold = Callable[[StoredTensor, torch.dtype], Tensor]


def as_it_is(name: str, tensor: Tensor) -> Tensor:
    """The tensor itself: most models are what their files hold."""
    return tensor


def dense(stored: StoredTensor, dtype: torch.dtype) -> Tensor:
    """The weight as `dtype`: how weights are held where nothing else is asked for."""
    return stored.dense(dtype)


def fill(
    model: torch.nn.Module,
    checkpoint: Checkpoint,
    reader: Reader,
    dtype: torch.dtype,
    adapt: Adapt = as_it_is,
    hold: Hold = dense,
) -> None:
    """Give `model`, whose parameters are on meta, the weights of `checkpoint`.

    Tensors go straight to the reader's device, so the host never holds the model. `adapt`
    makes of a name's stored tensor the model's, or None of one it has no use for; `hold`
    says how each is kept there. Raises `ModelInvalid`, before anything is read, for
    tensors too many, too few or of another shape.
    """
    wanted = _wanted(model, checkpoint, adapt)
    tensors: dict[str, Tensor] = {}
    for stored in reader.tensors(w for w in checkpoint.weights.values() if w.name in wanted):
        tensor = adapt(stored.stored.name, hold(stored, dtype))
        assert tensor is not None
        tensors[stored.stored.name] = tensor
    try:
        model.load_state_dict(tensors, strict=False, assign=True)
    except RuntimeError:
        raise errors.ModelInvalid(
            f"The model's {checkpoint.part} has tensors of another size."
        ) from None


def _wanted(model: torch.nn.Module, checkpoint: Checkpoint, adapt: Adapt) -> set[str]:
    """Names of the weights that have a place in `model`, once all of it is found to fit."""
    promised = {name: tuple(tensor.shape) for name, tensor in model.named_parameters()}
    found = {}
    for weight in checkpoint.weights.values():
        tensor = adapt(weight.name, torch.empty(weight.place.shape, device="meta"))
        if tensor is not None:
            found[weight.name] = tuple(tensor.shape)
    checkpoint.check(promised, found)
    return found.keys() & promised.keys()
