"""The loop that turns noise into the edited picture's latents."""

# torch annotates in part only.
# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Conditioning:
    """What guides an edit; the same for all its n pictures.

    `prompt` and `negative` are embeddings [1, tokens, channels], `references` the packed
    latents of all pictures [1, tokens, 64]. `shapes` gives (1, rows, columns) in tokens
    of the target and each reference. Guidance runs where there is a `negative`.
    """

    prompt: Tensor
    negative: Tensor | None
    references: Tensor
    shapes: list[tuple[int, int, int]]


@torch.inference_mode()
def denoise(
    transformer: Any,
    scheduler: Any,
    tokens: Tensor,
    conditioning: Conditioning,
    scale: float,
    on_step: Callable[[int, Tensor], None],
) -> Tensor:
    """Go from noise `tokens` [1, target, 64] down `scheduler`'s steps to clean ones.

    `on_step(step, estimate)` is called after each step (from 1) with the clean tokens
    as the step predicts them.
    """

    def forward(prompt: Tensor) -> Tensor:
        output: Tensor = transformer(
            hidden_states=torch.cat([tokens, conditioning.references], dim=1),
            timestep=time.expand(1).to(tokens.dtype) / 1000,
            encoder_hidden_states=prompt,
            img_shapes=[conditioning.shapes],
            return_dict=False,
        )[0]
        return output[:, : tokens.shape[1]]

    for step, time in enumerate(scheduler.timesteps, 1):
        velocity = forward(conditioning.prompt)
        if conditioning.negative is not None:
            velocity = guide(velocity, forward(conditioning.negative), scale)
        estimate = tokens - scheduler.sigmas[step - 1] * velocity
        tokens = scheduler.step(velocity, time, tokens, return_dict=False)[0]
        on_step(step, estimate)
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
