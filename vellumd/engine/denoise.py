"""The loop that turns noise into the edited picture's latents."""

# torch annotates in part only.
# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from vellumd.engine.plan import Plan
from vellumd.engine.rows import BOTH, ONE
from vellumd.engine.transformer import Conditioning, Forward


@torch.inference_mode()
def denoise(
    forward: Forward,
    scheduler: Any,
    tokens: Tensor,
    conditioning: Conditioning,
    scale: float,
    plan: Plan,
    on_step: Callable[[int, Tensor], None],
    generator: torch.Generator | None = None,
) -> Tensor:
    """Go from noise `tokens` [1, target, 64] down `scheduler`'s steps to clean ones.

    `on_step(step, estimate)` is called after each step (from 1) with the clean tokens
    as the step predicts them. Nothing in here waits for the card, but for a scheduler that draws
    new noise at each step, by the CPU's `generator`: the same on every device.
    """
    velocity_of = forward.prepare(conditioning, scheduler.timesteps, plan)
    for step, time in enumerate(scheduler.timesteps):
        guided = conditioning.negative is not None and step in plan.guided
        velocity = velocity_of(step, BOTH if guided else ONE, tokens)
        if guided:
            positive, negative = torch.split(velocity, 1)
            velocity = guide(positive, negative, scale)
        estimate = tokens - scheduler.sigmas[step] * velocity
        tokens = scheduler.step(velocity, time, tokens, generator=generator, return_dict=False)[0]
        on_step(step + 1, estimate)
    return tokens


def guide(positive: Tensor, negative: Tensor, scale: float) -> Tensor:
    """Classifier-free guidance that keeps each token's length.

    negative + scale · (positive − negative), rescaled per token to the norm of
    positive, as in diffusers' QwenImageEditPlusPipeline.
    """
    combined = negative + scale * (positive - negative)
    wanted = torch.norm(positive, dim=-1, keepdim=True)
    guided: Tensor = combined * (wanted / torch.norm(combined, dim=-1, keepdim=True))
    return guided


@contextlib.contextmanager
def watched(
    blocks: Iterable[torch.nn.Module], device: torch.device, tick: Callable[[], None]
) -> Iterator[None]:
    """Call `tick` after each forward of one of `blocks`; what it raises ends the forward.

    On a GPU the launches run ahead of the work, so each tick waits for the block before:
    beats tell of work done, and a cancel waits for one block at most.
    """
    behind: list[torch.cuda.Event] = []

    def after(*_: object) -> None:
        if device.type == "cuda":
            event = torch.cuda.Event()
            event.record(torch.cuda.current_stream(device))
            behind.append(event)
            if len(behind) > 1:
                behind.pop(0).synchronize()
        tick()

    handles = [block.register_forward_hook(after) for block in blocks]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
