"""A stage of the demo's training: its clock, its log, its checkpoint."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

SAVE_S = 60.0
WARMUP = 100
"""Steps over which the learning rate rises."""
UNTIMED = 12
"""First steps of a sitting that do not count, because they compile."""
TOLD = 200
"""Steps between two lines of the log."""
COOL = 0.5
"""Share of the time over which it falls to nothing, at the end."""


class Run:
    """Steps until `minutes` are over, counted over all its sittings.

    A checkpoint is written about every minute and at the end; a run with one goes on from
    there. Each sitting draws from torch's generators anew, seeded by `seed` and where it
    starts, so that nothing comes twice. What is told is printed and
    kept in `folder/training.jsonl`.
    """

    def __init__(self, folder: Path, stage: str, minutes: float, seed: int) -> None:
        self.stage = stage
        self._log = folder / "training.jsonl"
        self._file = folder / f"{stage}.checkpoint.pt"
        self._seconds = minutes * 60
        self._seed = seed
        self.step = 0
        self._elapsed = 0.0

    def steps(
        self, state: Callable[[], dict[str, Any]], restore: Callable[[dict[str, Any]], None]
    ) -> Iterator[float]:
        """Yield the learning rate's scale for each step; `state` and `restore` are the model's."""
        if self._file.is_file():
            saved = torch.load(self._file, weights_only=True)
            self.step, self._elapsed = saved["step"], saved["elapsed"]
            restore(saved["state"])
        torch.manual_seed(self._seed + self.step)
        compiled = self.step + UNTIMED
        before = self._elapsed
        began = saved_at = time.monotonic()
        while self._elapsed < self._seconds:
            left = 1 - self._elapsed / self._seconds
            yield min(1.0, (self.step + 1) / WARMUP, left / COOL)
            self.step += 1
            now = time.monotonic()
            if self.step <= compiled:
                began = now
            self._elapsed = before + now - began
            if now - saved_at > SAVE_S or self._elapsed >= self._seconds:
                saved_at = now
                self._save(state())

    def _save(self, state: dict[str, Any]) -> None:
        """Write the checkpoint; the old one stays until the new one is whole."""
        new = self._file.with_suffix(".new")
        torch.save({"step": self.step, "elapsed": self._elapsed, "state": state}, new)
        new.replace(self._file)

    def tell(self, **values: Any) -> None:
        """Print figures of this step and keep them."""
        line = {"stage": self.stage, "step": self.step, "s": round(self._elapsed, 1), **values}
        text = json.dumps(line)
        print(text, flush=True)
        with self._log.open("a") as log:
            log.write(text + "\n")
