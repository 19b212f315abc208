"""The optimizer of the demo's training: Muon for matrices, AdamW for all else."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

BETAS = 0.9, 0.98
MOMENTUM = 0.95
DECAY = 0.02
"""Weight decay, decoupled."""


class Optimizer:
    """Both optimizers with one learning rate, which is a tensor so that a graph can read it.

    Muon orthogonalises the momentum of each matrix (K. Jordan and others, "Muon: An
    optimizer for hidden layers", 2024); with its step sized as AdamW's (J. Liu and
    others, "Muon is scalable for LLM training", arXiv 2502.16982) both share a scale.
    Matrices of one shape are orthogonalised in one batch, because a toy model's are small.
    """

    def __init__(
        self,
        matrices: Iterable[Tensor],
        others: Iterable[Tensor],
        lr: float,
        *,
        muon: float = 1.0,
        decay: float = DECAY,
    ) -> None:
        """`matrices` are weights of linears and convolutions between hidden layers.

        `lr` is AdamW's, `muon` the learning rate of Muon in units of it.
        """
        self._lr, self._muon, self._decay = lr, muon, decay
        self._matrices: dict[tuple[int, ...], list[Tensor]] = defaultdict(list)
        for matrix in matrices:
            self._matrices[tuple(matrix.shape)].append(matrix)
        self._momentum = {
            shape: torch.zeros((len(same), *shape), device=same[0].device)
            for shape, same in self._matrices.items()
        }
        others = list(others)
        self._now = torch.tensor(lr, device=others[0].device)
        gpu = others[0].is_cuda
        self._adam = torch.optim.AdamW(
            others, self._now, BETAS, weight_decay=decay, fused=gpu, capturable=gpu
        )

    def scale(self, share: float) -> None:
        """Take the next steps at `share` of the learning rates."""
        self._now.fill_(self._lr * share)

    @torch.no_grad()
    def step(self) -> None:
        """Use the gradients, and let them go."""
        self._adam.step()
        self._adam.zero_grad(set_to_none=True)
        for shape, same in self._matrices.items():
            # What the last block does with the words reaches no loss, so it has no gradient.
            gradients = [torch.zeros_like(m) if m.grad is None else m.grad for m in same]
            gradient = torch.stack(gradients)
            momentum = self._momentum[shape].lerp_(gradient, 1 - MOMENTUM)
            ahead = gradient.lerp_(momentum, MOMENTUM).flatten(2)
            lr = self._now * self._muon
            update = orthogonal(ahead) * (0.2 * max(ahead.shape[1:]) ** 0.5) * -lr
            torch._foreach_mul_(same, 1 - lr * self._decay)
            torch._foreach_add_(same, list(update.view_as(momentum).unbind()))
            for matrix in same:
                matrix.grad = None

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {"momentum": self._momentum, "adam": self._adam.state_dict()}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from `state`."""
        self._momentum = state["momentum"]
        self._adam.load_state_dict(state["adam"])
        for group in self._adam.param_groups:
            group["lr"] = self._now


def orthogonal(matrices: Tensor, steps: int = 5) -> Tensor:
    """The nearest orthogonal matrices to [N, rows, columns], about: by Newton and Schulz.

    The coefficients of the quintic iteration are those of Jordan's Muon.
    """
    found = matrices.bfloat16() if matrices.is_cuda else matrices
    tall = found.shape[1] > found.shape[2]
    found = found.mT if tall else found
    found = found / (found.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(steps):
        square = found @ found.mT
        found = 3.4445 * found + (-4.7750 * square + 2.0315 * square @ square) @ found
    nearest: Tensor = (found.mT if tall else found).to(matrices.dtype)
    return nearest
