"""Edits whose time is taken, by the engine as a job would have them."""

from __future__ import annotations

import hashlib
import statistics
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from vellumd.engine import pipeline
from vellumd.engine.report import PipeReport
from vellumd.images import sha256_of
from vellumd.models import ImageRef, LoraRef, ResolvedEdit
from vellumd.protocol import Capabilities, Init

SIZE = 736, 1011
"""Pixels of the predecessor's pictures."""
PROMPT = "make it snow " * 40
CUDA = torch.cuda.is_available()


@dataclass(frozen=True)
class Wanted:
    """An edit: references, steps, guidance, tier; Lightning's LoRA or the model's own schedule."""

    references: int = 3
    steps: int = 8
    guidance: float = 3.0
    tier: str = "standard"
    lightning: bool = True
    tiny: bool = False

    def resolved(self, files: list[Path], prompt: str) -> ResolvedEdit:
        """As the queue would hold it."""
        loras = (LoraRef(name="lightning-8"),) if self.lightning else ()
        given: Any = {
            "tier": self.tier,
            "scheduler": "lightning" if self.lightning else "base",
            "size": "fit:0.1" if self.tiny else "match",
        }
        return ResolvedEdit(
            model="random", prompt=prompt, images=tuple(map(reference, files)), steps=self.steps,
            true_cfg_scale=self.guidance, seed=1, loras=loras, **given,
        )  # fmt: skip

    @property
    def forwards(self) -> int:
        """Of the transformer."""
        return self.steps * (2 if self.guidance > 1 else 1)


def loaded(
    folder: Path, cache: Path | None = None, **settings: Any
) -> tuple[pipeline.QwenEngine, Capabilities]:
    """An engine with the model in `folder`, where it keeps what it timed unless `cache` says."""
    init = Init(
        engine="", settings={"model": str(folder), **settings},
        device="cuda:0" if CUDA else "cpu", spool=folder,
        cache=cache or folder,
    )  # fmt: skip
    engine = pipeline.create(init)
    return engine, engine.load(PipeReport(lambda frame: None, preview=lambda: False))


def reference(file: Path) -> ImageRef:
    """The picture in `file` as an edit names it."""
    return ImageRef(sha256=sha256_of(file), width=SIZE[0], height=SIZE[1])


def pictures(folder: Path, name: str, count: int) -> list[Path]:
    """`count` pictures of noise called `name`, always the same ones while the folder lasts."""
    found = [folder / f"{name}-{number}.png" for number in range(count)]
    for file in found:
        if not file.is_file():
            Image.effect_noise(SIZE, 90).convert("RGB").save(file)
    return found


def timed(
    engine: pipeline.QwenEngine, folder: Path, wanted: Wanted, again: int = 2
) -> dict[str, Any]:
    """A short edit of other pictures to warm up, then the one that counts, then it `again`.

    `new` is with nothing known of pictures and prompt, `known` with both encoded before. All
    run the same forwards: `denoise_median_s` is what those take.
    """
    once(engine, pictures(folder, "warm", wanted.references), replace(wanted, steps=2), "warm up")
    files = pictures(folder, "new", wanted.references)
    engine._model.store.clear()  # type: ignore[union-attr]
    new = once(engine, files, wanted, PROMPT)
    known = [once(engine, files, wanted, PROMPT) for _ in range(again)]
    denoise = [edit["timings_s"]["denoise"] for edit in (new, *known)]
    outside = [
        round(edit["edit_s"] - seconds, 3)
        for edit, seconds in zip((new, *known), denoise, strict=True)
    ]
    return new | {
        "outside_s": outside[0],
        "outside_known_s": outside[1],
        "known_s": [edit["edit_s"] for edit in known],
        "denoise_s": denoise,
        "denoise_median_s": statistics.median(denoise),
    }


def once(
    engine: pipeline.QwenEngine, files: list[Path], wanted: Wanted, prompt: str
) -> dict[str, Any]:
    """One edit: seconds by phase, seconds a forward, peak memory, and which picture it gave."""
    if CUDA:
        torch.cuda.reset_peak_memory_stats()
    report = PipeReport(lambda frame: None, preview=lambda: False)
    edit = wanted.resolved(files, prompt)
    began = time.perf_counter()
    (result,) = engine.edit(edit, files, report, lambda: False)
    seconds = time.perf_counter() - began
    timings = report.timings()
    return {
        "edit_s": round(seconds, 3),
        "forward_s": round(timings["denoise"] / wanted.forwards, 4),
        "peak_gb": round(torch.cuda.max_memory_allocated() / 1e9, 2) if CUDA else None,
        "sha256": hashlib.sha256(result.tobytes()).hexdigest()[:16],
        "warnings": report.warnings,
        "timings_s": timings,
    }
