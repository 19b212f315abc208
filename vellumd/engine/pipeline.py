"""Qwen-Image-Edit as an engine: encode, denoise, decode, over loaded components."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from PIL import Image
from torch import Tensor

from vellumd import errors, images, memory_plan, model_card, presets
from vellumd.artefact import Artefact
from vellumd.engine import latents, loading, memory, placing, precision, schedule, tuning
from vellumd.engine.content import Store, digest, size_of
from vellumd.engine.denoise import denoise, watched
from vellumd.engine.encode import Encoder
from vellumd.engine.lora import Loras
from vellumd.engine.plan import Plan
from vellumd.engine.shelf import Shelf
from vellumd.engine.tiers import Forwards
from vellumd.engine.transformer import Conditioning
from vellumd.models import LoraRef, ResolvedEdit
from vellumd.protocol import Capabilities, Init, Report
from vellumd.settings import EngineSettings, Limits
from vellumd.weights import model as weights

log = logging.getLogger(__name__)

MB = 10**6


def create(init: Init) -> QwenEngine:
    """The engine that `init` asks for: what an engine's import string names."""
    return QwenEngine(init)


class QwenEngine:
    """Edits with one Qwen-Image-Edit model. Implements `protocol.Engine`."""

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
        self._plan = memory_plan.Plan()

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
        opened = model_card.opened(settings)
        choice = self._choose(opened.configs["transformer"], report)
        self._recipe = choice.recipe
        self._shelf = Shelf(settings, self._card, opened.transformer.files, choice.recipe)
        ready = self._shelf.best(presets.expected(settings, self._card))
        memory.limit(self._device, settings.vram_budget_gb)
        plan = self._planned(opened, ready)
        log.info("memory plan: %s", plan)
        parts = loading.load(
            opened, self._device, report.beat, choice.recipe, settings.keep, ready, plan
        )
        self._model = self._assembled(parts)
        loras = self._model.loras
        return Capabilities(
            model=self._card.name,
            device=_name_of(self._device),
            recipe=choice.recipe.name,
            memory_plan=str(plan),
            loras=loras.names(),
            load_s=round(time.monotonic() - started, 3),
            notes=tuple(self._notes(parts)),
        )

    def _choose(self, config: dict[str, Any], report: Report) -> precision.Choice:
        """The recipe; on a card's first start it is timed, which is told."""
        settings = self._settings
        if self._card.demo:
            return precision.choose(settings.tier, settings.recipe, self._device)
        choice, self._times = tuning.choose(
            settings.tier, settings.recipe, self._device, config, self._cache,
            partial(report.beat, "measure"),
        )  # fmt: skip
        return choice

    def _planned(self, opened: weights.Model, ready: Artefact | None) -> memory_plan.Plan:
        self._plan = placing.plan(self._settings, opened, ready, self._recipe, self._device)
        if not self._plan.fits:
            log.warning("the model is larger than the budgets; the smallest plan is tried")
        return self._plan

    def _assembled(self, parts: loading.Parts, store: Store | None = None) -> Model:
        settings = self._settings
        path = model_card.folder(settings.model)
        loras = Loras(parts, path, self._card, settings.loras, settings.base)
        return Model(
            parts, loras, self._card, self._limits, settings, store, tiled=self._plan.tiled
        )

    def _exchange(self, loras: Sequence[LoraRef], report: Report) -> Model:
        """The model with the transformer that `loras` run best on, exchanged if need be."""
        assert self._model is not None and self._shelf is not None
        ready = self._shelf.best(loras)
        if ready == self._model.parts.ready:
            return self._model
        parts, store = self._model.parts, self._model.store
        # Nobody may hold the old weights while the new ones come.
        self._model = None
        if parts.placed.blocks is not None:
            parts.placed.blocks.drop()
        bare = replace(parts, transformer=None, table=None)
        del parts
        memory.free()
        plan = self._planned(bare.model, ready)
        parts = loading.exchange(bare, report.beat, self._recipe, self._settings.keep, ready, plan)
        self._model = self._assembled(parts, store)
        return self._model

    def _notes(self, parts: loading.Parts) -> Iterator[str]:
        if self._card.note:
            yield self._card.note
        yield str(parts.read)
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
        if self._model is None:
            raise errors.EngineUnavailable("The engine is not loaded.")
        for code in self._warnings(edit):
            report.warn(code)
        model = self._exchange(edit.loras, report)
        yield from Run(model, edit, report, cancelled).pictures(images)

    def _warnings(self, edit: ResolvedEdit) -> Iterator[str]:
        assert self._model is not None
        if self._card.demo:
            yield "demo_model"
        if self._model.forwards.lowers(edit.tier):
            yield "tier_lowered"

    def unload(self) -> None:
        """Let go of the weights and of the card's memory."""
        self._model = None
        memory.free()


class Model:
    """A model with what is made once for it."""

    def __init__(
        self,
        parts: loading.Parts,
        loras: Loras,
        card: model_card.ModelCard,
        limits: Limits | None = None,
        settings: EngineSettings | None = None,
        store: Store | None = None,
        *,
        tiled: bool = False,
    ) -> None:
        """`limits` are those of inputs; limits and `settings` are the defaults if left out.

        `store` is one that was filled by the same encoder and VAE. `tiled`: the VAE always is.
        """
        if tiled:
            parts.vae.enable_tiling()
        self.limits = limits or Limits()
        self.settings = settings or EngineSettings()
        self.parts = parts
        self.loras = loras
        self.card = card
        self.codec = latents.Codec(parts.vae)
        self.store = store or Store(self.settings.cache_mb * MB)
        self.encoder = Encoder(
            parts.processor, parts.text_encoder, card.vision_area, card.prompt_tokens, self.store
        )
        self.forwards = Forwards.of(parts, self.settings)

    def packed(self, picture: Image.Image) -> Tensor:
        """The tokens [1, tokens, 64] of a reference `picture`."""
        device, dtype, vae = self.parts.device, self.parts.dtype, self.parts.vae
        return self.store.get(
            # Tiles give slightly other latents.
            ("latents", digest([picture]), vae.use_tiling),
            lambda: latents.pack(self.codec.encode(picture, device, dtype)),
            size_of,
        )


class Run:
    """One edit. All state of an edit lives here, so nothing passes on to the next."""

    def __init__(
        self,
        model: Model,
        edit: ResolvedEdit,
        report: Report,
        cancelled: Callable[[], bool],
    ) -> None:
        self._model = model
        self._parts = model.parts
        self._edit = edit
        self._report = report
        self._cancelled = cancelled
        self._guided = edit.true_cfg_scale > 1
        self._prompts = 2 if self._guided else 1
        self._forward = model.forwards.of_tier(edit.tier)
        self._plan = self.plan()

    def blocks(self) -> list[torch.nn.Module]:
        """Every transformer block that the edit runs through."""
        return [*self._parts.encoder_blocks(), *self._forward.blocks]

    def pictures(self, files: list[Path]) -> Iterator[Image.Image]:
        """The edit's n pictures: encode once, then denoise and decode each."""
        inputs = [images.load(file, self._model.limits).flat for file in files]
        canvas = images.Canvas.plan(
            self._edit.size, [picture.size for picture in inputs], self._model.card.canvas_area
        )
        if canvas.enlarged:
            self._report.warn("enlarged")
        self._look("lora")
        self._model.loras.use(self._edit.loras)
        with memory.Ladder(tuple(self._rungs()), self._report) as ladder:
            conditioning = ladder.climb(partial(self.encode, inputs, canvas))
            for number in range(self._edit.n):
                tokens = ladder.climb(partial(self.denoise, conditioning, canvas, number))
                yield canvas.finish(ladder.climb(partial(self.decode, tokens, canvas)))

    def encode(self, inputs: list[Image.Image], canvas: images.Canvas) -> Conditioning:
        """Embeddings of both prompts and latents of all references."""
        parts = self._parts
        # Where image 1 is fitted into the canvas, the encoder sees it there too; else it
        # sees the input itself, as in the stock pipeline.
        first = canvas.fit(inputs[0]) if canvas.box else inputs[0]
        views = self._model.encoder.views([first, *inputs[1:]])
        prompts = [self._readable(self._edit.prompt)]
        if self._guided:
            prompts.append(self._readable(self._edit.negative_prompt))
        encoder = self._model.encoder
        blocks = encoder.blocks(prompts, views)
        moved = parts.placed.encoding() if blocks else contextlib.nullcontext()
        with moved, self._watched("encode", blocks):
            prompt, *negative = encoder.embed(prompts, views, parts.device)
        packed, shapes = [], [_tokens(canvas.width, canvas.height)]
        for picture in self._references(inputs, canvas):
            self._look("encode")
            packed.append(self._model.packed(picture))
            shapes.append(_tokens(*picture.size))
        return Conditioning(
            prompt, negative[0] if negative else None, torch.cat(packed, dim=1), shapes
        )

    def _references(self, inputs: list[Image.Image], canvas: images.Canvas) -> list[Image.Image]:
        """The copies of `inputs` that the transformer sees: image 1 as the canvas says."""
        area = self._model.card.canvas_area
        others = [
            picture.resize(images.reference_size(*picture.size, area), Image.Resampling.LANCZOS)
            for picture in inputs[1:]
        ]
        return [canvas.fit(inputs[0]), *others]

    def _readable(self, prompt: str) -> str:
        """The part of `prompt` that is read; told if that is not all."""
        readable, cut = self._model.encoder.readable(prompt)
        if cut:
            self._report.warn("prompt_cut")
        return readable

    def denoise(self, conditioning: Conditioning, canvas: images.Canvas, number: int) -> Tensor:
        """The clean tokens of result `number` (from 0): noise of its seed, then the steps."""
        parts, edit = self._parts, self._edit
        size = canvas.width, canvas.height
        tokens = latents.noise(edit.seed + number, *size, parts.dtype, parts.device)
        steps = schedule.schedule(
            parts.scheduler, edit.scheduler, edit.steps, tokens.shape[1], parts.device
        )

        if parts.table is not None:
            # A schedule that is not tabled costs one look at the modulation's weights.
            times = steps.timesteps.to(parts.dtype) / 1000
            parts.table.cover(times, lambda done, of: self._look("modulation", done, of))

        def on_step(step: int, estimate: Tensor) -> None:
            self._report.step(number + 1, edit.n, step, edit.steps)
            if self._report.wants_preview and step < edit.steps:
                self._report.preview(self._sketch(latents.unpack(estimate, *size)))

        blocks = self._plan.forwards(self._prompts) * len(self._forward.blocks)
        with self._watched("denoise", blocks):
            return denoise(
                self._forward, steps, tokens, conditioning, edit.true_cfg_scale, self._plan, on_step
            )

    def plan(self) -> Plan:
        """Which steps do all the work in this edit."""
        settings, steps = self._model.settings, self._edit.steps
        if self._edit.tier != "turbo" or not self._forward.reuses:
            return Plan.full(steps)
        return Plan.of(steps, settings.turbo_every, settings.turbo_guided)

    def _rungs(self) -> Iterator[memory.Rung]:
        """What this edit can do when memory runs out."""
        freed, *others = memory.rungs(self._parts, self._model.store.clear)
        yield freed
        if self._plan.reuses:  # keeps 12 GB a prompt, with three references
            yield memory.Rung("tier_lowered", self._without_reuse)
        yield from others

    @contextlib.contextmanager
    def _without_reuse(self) -> Iterator[None]:
        self._plan = Plan.full(self._edit.steps)
        yield

    def decode(self, tokens: Tensor, canvas: images.Canvas) -> Image.Image:
        """The picture of clean `tokens`, as large as the canvas."""
        self._look("decode")
        return self._model.codec.decode(latents.unpack(tokens, canvas.width, canvas.height))

    def _sketch(self, estimate: Tensor) -> Image.Image:
        colours = self._model.card.latent_rgb
        return latents.tint(estimate, colours) if colours else self._model.codec.sketch(estimate)

    def _look(self, phase: str, done: int = 0, of: int = 0) -> None:
        """Tell a sign of life and stop if the edit was cancelled."""
        self._report.beat(phase, done, of)
        if self._cancelled():
            raise errors.Cancelled("The job was cancelled.")

    def _watched(self, phase: str, of: int) -> contextlib.AbstractContextManager[None]:
        """Look after each transformer block that runs inside."""
        done = 0

        def tick() -> None:
            nonlocal done
            done += 1
            self._look(phase, done, of)

        self._look(phase, 0, of)
        return watched(self.blocks(), self._parts.device, tick)


def _tokens(width: int, height: int) -> tuple[int, int, int]:
    """Frames, rows and columns of tokens of a picture."""
    return 1, height // latents.PATCH, width // latents.PATCH


def _name_of(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
