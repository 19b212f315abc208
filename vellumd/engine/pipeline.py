"""Qwen-Image-Edit as an engine: loaded once, its transformer exchanged as edits want it."""

from __future__ import annotations

import logging
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from math import isqrt
from pathlib import Path
from typing import Any

import torch
import transformers
from PIL import Image

from vellumd import errors, memory_plan, model_card, presets
from vellumd.artefact import Artefact
from vellumd.engine import loading, memory, placing, precision, tuning
from vellumd.engine.content import Store
from vellumd.engine.lora import Loras
from vellumd.engine.model import Model
from vellumd.engine.run import Run
from vellumd.engine.shelf import Shelf
from vellumd.images import sha256_of
from vellumd.models import ImageRef, LoraRef, ResolvedEdit
from vellumd.protocol import Capabilities, Init, Report
from vellumd.settings import EngineSettings, Limits
from vellumd.weights import model as weights

log = logging.getLogger(__name__)

WARM_STEPS = 2
"""Of a warm-up: in turbo the second one uses keys and values again."""


def create(init: Init) -> QwenEngine:
    """The engine that `init` asks for: what an engine's import string names."""
    return QwenEngine(init)


class QwenEngine:
    """Edits with one Qwen-Image-Edit model. Implements `protocol.WarmEngine`."""

    def __init__(self, init: Init) -> None:
        self._settings = EngineSettings.model_validate(init.settings)
        self._device = loading.device_of(init.device)
        self._limits = Limits.model_validate(init.limits)
        self._card = model_card.of(self._settings)
        self._model: Model | None = None
        self._shelf: Shelf | None = None
        self._recipe = precision.PLAIN
        self._times: tuning.Times = {}
        self._cache = init.cache
        self._home: memory_plan.Plan | None = None  # what all but the transformer lies by
        self._rest: tuple[loading.Parts, Store] | None = None  # all but the transformer

    def load(self, report: Report) -> Capabilities:
        """Load the model."""
        started = time.monotonic()
        transformers.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
        settings = self._settings
        if self._card.demo and self._device.type == "cpu":
            # The demo's tensors are too small to be shared: two threads take 0.44 s for an
            # edit that one does in 0.30 s.
            torch.set_num_threads(1)
        if self._device.type == "cuda":
            # Triton's kernels and new events go to the current card, whatever the tensors'.
            torch.cuda.set_device(self._device)
            memory.expandable(self._device)  # before anything lies in segments that do not grow
        opened = model_card.opened(settings)
        choice = self._choose(opened.configs["transformer"], report)
        self._recipe = choice.recipe
        self._shelf = Shelf(settings, self._card, opened.transformer.files, choice.recipe)
        loras = presets.expected(settings, self._card).loras or ()
        ready = _checked(self._shelf.best(loras))
        memory.limit(self._device, settings.vram_budget_gb)
        self._home = None
        plan = self._home = self._planned(opened, ready, loras)
        log.info("memory plan: %s", plan)
        parts = loading.load(
            opened, self._device, report.beat, choice.recipe, settings.keep, ready, plan
        )
        self._model = self._assembled(parts, plan)
        return Capabilities(
            model=self._card.name,
            device=_name_of(self._device),
            tiers=self._model.tiers,
            recipe=choice.recipe.name,
            memory_plan=str(plan),
            loras=self._model.loras.names(),
            load_s=round(time.monotonic() - started, 3),
            notes=tuple(self._notes(parts)),
            warms_up=self._warms_up,
        )

    @property
    def _warms_up(self) -> bool:
        wanted = self._settings.warm_up
        return self._device.type == "cuda" or self._settings.compile if wanted is None else wanted

    def _choose(self, config: dict[str, Any], report: Report) -> precision.Choice:
        """The recipe; on a card's first start it is timed, which is told."""
        settings = self._settings
        if self._card.demo:
            return precision.choose(settings, self._device)
        choice, self._times = tuning.choose(
            settings, self._device, config, self._cache, partial(report.beat, "measure")
        )
        return choice

    def _planned(
        self, opened: weights.Model, ready: Artefact | None, loras: Sequence[LoraRef]
    ) -> memory_plan.Plan:
        """The plan for the transformer out of `ready`, with those of `loras` beside it that it
        lacks.
        """
        assert self._shelf is not None
        beside = self._shelf.beside(ready, loras)
        plan = placing.plan(
            self._settings, opened, ready, self._recipe, self._device, beside, self._home
        )
        if not plan.fits:
            log.warning("the model is larger than the budgets; the smallest plan is tried")
        return plan

    def _assembled(
        self, parts: loading.Parts, plan: memory_plan.Plan, store: Store | None = None
    ) -> Model:
        settings = self._settings
        path = model_card.folder(settings.model)
        loras = Loras(parts, path, self._card, settings.loras, settings.base)
        return Model(parts, loras, self._card, self._limits, settings, store, plan)

    def _exchange(self, loras: Sequence[LoraRef], report: Report) -> Model:
        """The model with the transformer that `loras` run best on, exchanged if need be."""
        assert self._shelf is not None
        ready = self._shelf.best(loras)
        if self._model is not None and ready == self._model.parts.ready:
            return self._model
        _checked(ready)
        self._strip()
        memory.free()
        assert self._rest is not None
        bare, store = self._rest
        plan = self._planned(bare.model, ready, loras)
        parts = loading.exchange(bare, report.beat, self._recipe, self._settings.keep, ready, plan)
        self._model, self._rest = self._assembled(parts, plan, store), None
        return self._model

    def _strip(self) -> None:
        """Let go of the transformer: nobody may hold the old one while the new one comes.

        After an exchange that failed, which the next edit tries anew, it is gone already.
        """
        if self._model is None:
            return
        parts, store = self._model.parts, self._model.store
        if parts.placed.blocks is not None:
            parts.placed.blocks.drop()
        placed = replace(parts.placed, blocks=None)
        bare = replace(parts, transformer=None, table=None, placed=placed)
        self._model, self._rest = None, (bare, store)

    def _notes(self, parts: loading.Parts) -> Iterator[str]:
        if self._card.note:
            yield self._card.note
        yield str(parts.read)
        if parts.ready is not None:
            yield f"the transformer comes from the artefact {parts.ready.folder.name}"
        elif self._recipe.linear is not None:
            yield "no artefact fits, so weights were rounded while loading: see vellumd doctor"
        if self._times:
            times = (f"{name} {1000 * s:.2f} ms" for name, s in self._times.items())
            yield "a block by recipe, measured on this card: " + ", ".join(times)
        if not parts.model.zero_cond_t:
            # The flag adds no weights, so a wrong one loads without complaint.
            yield "zero_cond_t is off: right for Qwen-Image-Edit-2509, wrong for 2511"

    def edit(
        self,
        edit: ResolvedEdit,
        images: list[Path],
        report: Report,
        cancelled: Callable[[], bool],
    ) -> Iterator[Image.Image]:
        """Yield `edit.n` pictures in their final size; see `protocol.Engine`."""
        if self._model is None and self._rest is None:
            raise errors.EngineUnavailable("The engine is not loaded.")
        model = self._exchange(edit.loras, report)
        for code in self._warnings(edit):
            report.warn(code)
        yield from Run(model, edit, report, cancelled).pictures(images)

    def _warnings(self, edit: ResolvedEdit) -> Iterator[str]:
        assert self._model is not None
        if self._card.demo:
            yield "demo_model"
        if self._model.forwards.lowers(edit.tier):
            yield "tier_lowered"

    def warm_up(self, report: Report, cancelled: Callable[[], bool]) -> None:
        """See `protocol.WarmEngine`: two steps of the edit that is expected, of a grey picture."""
        assert self._model is not None
        side = isqrt(self._card.canvas_area)
        sizes = [(side, side)]
        if self._settings.compile:
            # What torch compiles is for one size; a second one makes it right for all.
            sizes.append((side, side // 2))
        with tempfile.TemporaryDirectory(prefix="vellumd-") as folder:
            file = Path(folder) / "grey.png"
            for size in sizes:
                Image.new("RGB", size, "grey").save(file)
                edit = self._expected(file, size)
                for _ in Run(self._model, edit, report, cancelled).pictures([file]):
                    pass

    def _expected(self, file: Path, size: tuple[int, int]) -> ResolvedEdit:
        """A short edit of the picture in `file`, as requests that choose nothing get it."""
        assert self._model is not None
        preset, there = presets.expected(self._settings, self._card), self._model.loras.names()
        loras = tuple(lora for lora in preset.loras or () if lora.name in there)
        if self._card.fused:
            loras = presets.with_fused((), self._card)
        return ResolvedEdit(
            model=self._card.name,
            images=(ImageRef(sha256=sha256_of(file), width=size[0], height=size[1]),),
            prompt="warm up",
            negative_prompt=presets.NEGATIVE,
            steps=WARM_STEPS,
            true_cfg_scale=preset.true_cfg_scale or 1,
            seed=0,
            tier=self._settings.tier,
            loras=loras,
            scheduler=presets.scheduler_for(loras, self._card),
        )

    def unload(self) -> None:
        """Let go of the weights and of the card's memory."""
        self._model = self._rest = None
        memory.free()


def _checked(ready: Artefact | None) -> Artefact | None:
    """`ready` once its headers are found to be whole: its files are called as a model's are."""
    if ready is not None:
        ready.check()
        log.info("the transformer comes from the artefact %s", ready.folder.name)
    return ready


def _name_of(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
