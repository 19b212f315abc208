"""Train the demo model from nothing: VAE, then transformer and text encoder, then the LoRA.

    python -m vellumd.demo.train FOLDER

The default times are for one H100. FOLDER keeps checkpoints, so that the same command goes
on after a break, the log `training.jsonl`, and in the end the model in `FOLDER/model`.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from vellumd.demo.train import base, lora, model, turns, vae
from vellumd.demo.train.check import Check
from vellumd.demo.train.data import Codec
from vellumd.demo.train.model import Components

CHECK_SEED = 987_654
"""Of the scenes that a finished stage is checked with."""
GUIDANCE = 1.0, 1.3, 1.5, 1.8
"""Guidances that the base weights are checked with, to choose the card's from."""


@dataclass(frozen=True)
class Plan:
    """What a training costs: minutes of its stages, and the share of the usual data.

    `vae_of` is a demo model whose VAE is taken over in place of training one.
    """

    vae: float
    base: float
    lora: float
    share: float
    check: int
    until: str
    vae_of: Path | None = None

    def part(self, sizes: dict[int, int]) -> dict[int, int]:
        """The plan's share of `sizes`."""
        return {pictures: max(2, round(size * self.share)) for pictures, size in sizes.items()}


def main() -> None:
    """Read the command line and train."""
    parser = argparse.ArgumentParser(prog="python -m vellumd.demo.train", description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--vae-minutes", type=float, default=3.0)
    parser.add_argument("--base-minutes", type=float, default=14.0)
    parser.add_argument("--lora-minutes", type=float, default=2.5)
    parser.add_argument("--share", type=float, default=1.0, help="of the usual data and batches")
    parser.add_argument("--check", type=int, default=100, help="edits of a kind in a check")
    parser.add_argument("--vae-of", type=Path, metavar="MODEL", help="take over its VAE")
    parser.add_argument("--until", choices=["vae", "base", "lora"], default="lora")
    parser.add_argument("--seed", type=int, default=model.SEED)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    plan = Plan(
        args.vae_minutes, args.base_minutes, args.lora_minutes, args.share, args.check, args.until,
        args.vae_of,
    )  # fmt: skip
    command = ["python", "-m", "vellumd.demo.train", *sys.argv[1:]]
    note(args.folder, command=command, torch=torch.__version__, seed=args.seed)
    train(args.folder, plan, args.seed, torch.device(args.device))


def train(folder: Path, plan: Plan, seed: int, device: torch.device) -> None:
    """All stages; what there is after each is in `folder/model`."""
    torch.set_float32_matmul_precision("high")
    torch.manual_seed(seed)
    parts = model.components(seed)
    for part in (parts.vae, parts.text_encoder, parts.transformer):
        part.to(device)
    parts.vae.to(memory_format=torch.channels_last)
    size = plan.part({0: vae.BATCH})[0]
    if plan.vae_of is not None:
        vae.take(parts.vae, plan.vae_of)
    else:
        vae.train(parts.vae, folder, plan.vae, seed, device, size)
    save(parts, folder, parts.vae)
    if plan.until == "vae":
        return
    codec = Codec(parts.vae, device)
    check = Check(codec, parts.words, plan.check, CHECK_SEED, device)
    note(folder, round_trip=check.round_trip())
    pools = base.pools(codec, parts.words, plan.part(base.POOLS), seed, device)
    sizes = plan.part(turns.BATCHES)
    base.train(parts, pools, folder, plan.base, seed, device, sizes)
    save(parts, folder, parts.text_encoder, parts.transformer)
    for cfg in GUIDANCE:
        success = check.take(parts, base.sigmas(model.STEPS), cfg, stochastic=True)
        note(folder, cfg=cfg, success=success)
    if plan.until == "base":
        return
    paths = plan.part(lora.PATHS)
    branches = lora.train(parts, pools, folder, plan.lora, seed, device, sizes, paths)
    success = check.take(parts, lora.sigmas(), 1.0, stochastic=False)
    note(folder, lora=True, cfg=1.0, success=success)
    parts.lora = lora.tensors(branches)
    lora.release(parts.transformer, branches)
    save(parts, folder)


def save(parts: Components, folder: Path, *trained: Any) -> None:
    """Round what was `trained` as it will be when loaded again, and write the model."""
    with torch.no_grad():
        for part in trained:
            for weight in part.parameters():
                weight.copy_(weight.bfloat16())
    model.save(parts, folder / "model")


def note(folder: Path, **values: Any) -> None:
    """Print and log what belongs to no step."""
    text = json.dumps({"at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), **values})
    print(text, flush=True)
    with (folder / "training.jsonl").open("a") as log:
        log.write(text + "\n")


if __name__ == "__main__":
    main()
