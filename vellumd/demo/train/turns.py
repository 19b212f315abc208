"""Training on edits of one, two and three pictures, which take turns."""

# torch annotates in part only.
# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from vellumd.demo.train.data import amp
from vellumd.demo.train.optimizer import Optimizer
from vellumd.demo.train.run import TOLD, Run
from vellumd.demo.train.step import Step

BATCHES = {1: 512, 2: 384, 3: 320}
"""Edits of a step by number of pictures."""
ORDER = (1, 1, 2, 1, 1, 1, 3, 1, 1, 2)
"""Numbers of pictures of one step after the other."""
SMOOTH = 0.02
"""Weight of a step's loss in the mean that is told."""


def train(
    run: Run,
    optimizer: Optimizer,
    modules: Mapping[str, nn.Module],
    losses: Mapping[int, Callable[[], Tensor]],
    device: torch.device,
) -> None:
    """Train `modules`, whose weights `optimizer` has, on `losses` by number of pictures."""
    shown = {pictures: torch.zeros((), device=device) for pictures in losses}

    def work(pictures: int) -> None:
        with amp(device):
            loss = losses[pictures]()
        loss.backward()
        optimizer.step()
        shown[pictures].lerp_(loss.detach(), SMOOTH)

    def state() -> dict[str, Any]:
        parts = {name: module.state_dict() for name, module in modules.items()}
        return {"modules": parts, "optimizer": optimizer.state()}

    def restore(saved: dict[str, Any]) -> None:
        for name, module in modules.items():
            module.load_state_dict(saved["modules"][name])
        optimizer.restore(saved["optimizer"])

    memory = torch.cuda.graph_pool_handle() if device.type == "cuda" else None
    steps = {pictures: Step(partial(work, pictures), device, memory) for pictures in losses}
    for scale in run.steps(state, restore):
        optimizer.scale(scale)
        steps[ORDER[run.step % len(ORDER)]]()
        if run.step % TOLD == 0:
            run.tell(**{f"loss{n}": round(loss.item(), 5) for n, loss in shown.items()})
