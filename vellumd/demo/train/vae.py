"""The first stage of the demo's training: the VAE. Edits cannot be sharper than it is."""

# torch annotates in part only.
# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 (its usual name)
from safetensors.torch import load_file
from torch import Tensor

from vellumd.demo.scenes import SIDE, Scenes, draw_scenes
from vellumd.demo.train.data import amp, moments, painter, to_input
from vellumd.demo.train.optimizer import Optimizer
from vellumd.demo.train.run import TOLD, Run
from vellumd.demo.train.step import Step

BATCH = 64
LR = 2e-3
MUON = 3.0
KL = 3e-4
AHEAD = 50
"""Batches that are painted at once: painting waits for the GPU, training does not."""
GRAY = 0.1
"""Share of pictures without colour."""
EDGES = 0.5
"""Weight of the error of the picture's differences from pixel to pixel."""
SQUARES = 2.0


def train(
    vae: Any, folder: Path, minutes: float, seed: int, device: torch.device, batch: int = BATCH
) -> None:
    """Train `vae` on pictures of the toy world, and give it its latents' statistics."""
    run = Run(folder, "vae", minutes, seed)
    paint = painter(device)
    matrices = [
        weight
        for name, weight in vae.named_parameters()
        if weight.dim() == 4
        and weight.shape[0] > 3
        and weight.shape[1] > 3
        and "conv_in" not in name
    ]
    chosen = set(map(id, matrices))
    others = [weight for weight in vae.parameters() if id(weight) not in chosen]
    optimizer = Optimizer(matrices, others, LR, muon=MUON)
    lose = torch.compile(_loss) if device.type == "cuda" else _loss
    pixels = to_input(torch.zeros(batch, SIDE, SIDE, 3, device=device))
    loss, error = torch.zeros((), device=device), torch.zeros((), device=device)

    def work() -> None:
        with amp(device):
            lost, square = lose(vae, pixels)
        lost.backward()
        optimizer.step()
        loss.copy_(lost.detach())
        error.copy_(square)

    def state() -> dict[str, Any]:
        return {"vae": vae.state_dict(), "optimizer": optimizer.state()}

    def restore(saved: dict[str, Any]) -> None:
        vae.load_state_dict(saved["vae"])
        optimizer.restore(saved["optimizer"])

    step = Step(work, device)
    ahead: list[Tensor] = []
    rng = None
    for scale in run.steps(state, restore):
        rng = rng or np.random.default_rng([seed, run.step])
        if not ahead:
            ahead = list(paint(pictures(rng, AHEAD * batch)).split(batch))
        pixels.copy_(to_input(ahead.pop()))
        optimizer.scale(scale)
        step()
        if run.step % TOLD == 0:
            run.tell(loss=round(loss.item(), 5), psnr=round(psnr(error), 2))
    # Of a generator of its own, so that a later sitting finds the same statistics.
    rng = np.random.default_rng([seed, 0, 0])
    measure(vae, paint(pictures(rng, 64 * batch)))
    run.tell(psnr=round(psnr(_error(vae, paint(pictures(rng, 16 * batch)))), 2))


def take(vae: Any, model: Path) -> None:
    """Give `vae` the weights and the latents' statistics of a demo `model`'s."""
    config = json.loads((model / "vae" / "config.json").read_text())
    vae.load_state_dict(load_file(model / "vae" / "diffusion_pytorch_model.safetensors"))
    vae.register_to_config(**{name: config[name] for name in ("latents_mean", "latents_std")})


def pictures(rng: np.random.Generator, n: int) -> Scenes:
    """Scenes as they come, some of them gray."""
    return replace(draw_scenes(rng, n), gray=rng.random(n) < GRAY)


def _loss(vae: Any, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """The loss, and the mean square error of pixels from −1 to 1."""
    mean, log_variance = moments(vae, pixels)
    latents = mean + torch.exp(0.5 * log_variance) * torch.randn_like(mean)
    made = vae.decoder(vae.post_quant_conv(latents))[:, :, 0].float()
    wanted = pixels[:, :, 0]
    difference = made - wanted
    edges = sum(torch.diff(difference, dim=axis).abs().mean() for axis in (2, 3))
    mean, log_variance = mean.float(), log_variance.float()
    kl = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).mean()
    square = difference.square().mean()
    loss = difference.abs().mean() + EDGES * edges + SQUARES * square + KL * kl
    return loss, square.detach()


def psnr(error: Tensor) -> float:
    """Decibels of a mean square error of pixels from −1 to 1."""
    return float(10 * torch.log10(4 / error))


@torch.no_grad()
def measure(vae: Any, pictures: Tensor) -> None:
    """Set the mean and deviation of each latent channel, by which the engine normalises."""
    latents = torch.cat([moments(vae, to_input(part))[0] for part in pictures.split(256)])
    flat = latents.transpose(0, 1).flatten(1)
    vae.register_to_config(
        latents_mean=[round(value, 4) for value in flat.mean(1).tolist()],
        latents_std=[round(value, 4) for value in flat.std(1).tolist()],
    )


@torch.no_grad()
def _error(vae: Any, pictures: Tensor) -> Tensor:
    """The mean square error of a round trip through the VAE."""
    total = []
    for part in pictures.split(256):
        pixels = to_input(part)
        made = vae.decoder(vae.post_quant_conv(moments(vae, pixels)[0])).clamp(-1, 1)
        total.append(F.mse_loss(made, pixels))
    return torch.stack(total).mean()
