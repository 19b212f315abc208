"""The run of one edit: encode, denoise, decode, over a loaded model."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from vellumd import errors, images
from vellumd.engine import latents, memory, schedule
from vellumd.engine.copies import Copies, Copy, begin
from vellumd.engine.denoise import denoise, watched
from vellumd.engine.model import Model
from vellumd.engine.plan import Plan
from vellumd.engine.transformer import Conditioning
from vellumd.models import ResolvedEdit
from vellumd.protocol import Report


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
        edit, card = self._edit, self._model.card
        sizes = [(picture.width, picture.height) for picture in edit.images]
        canvas = images.Canvas.plan(edit.size, sizes, card.canvas_area)
        if canvas.enlarged:
            self._report.warn("enlarged")
        self._look("lora")
        self._model.loras.use(edit.loras)
        with memory.Ladder(self._rungs(), self._report) as ladder:
            conditioning = ladder.climb(partial(self.encode, files, canvas))
            self._plan = self.fitting(conditioning)
            for number in range(edit.n):
                tokens = ladder.climb(partial(self.denoise, conditioning, canvas, number))
                picture = ladder.climb(partial(self.decode, tokens, canvas))
                self._report.used(self._model.loras.used())
                if self._model.standby.replaced:
                    self._report.warn("kernel_replaced")
                yield canvas.finish(picture)

    def encode(self, files: list[Path], canvas: images.Canvas) -> Conditioning:
        """Embeddings of both prompts and latents of all references."""
        self._look("encode")
        model, edit = self._model, self._edit
        with Copies(files, edit.images, canvas, model.limits, model.card.canvas_area) as copies:
            views, references = copies.views(model.card.vision_area), copies.references()
            prompts = [self._readable(edit.prompt)]
            if self._guided:
                prompts.append(self._readable(edit.negative_prompt))
            # All are made while the card works on the first.
            begin(views if model.encoder.looks(prompts, views) else ())
            begin(reference for reference in references if not model.knows(reference))
            prompt, *negative = self._embed(prompts, views)
            packed = []
            for reference in references:
                self._look("encode")
                packed.append(model.packed(reference))
            sizes = [(canvas.width, canvas.height), *copies.reference_sizes]
        return Conditioning(
            prompt,
            negative[0] if negative else None,
            torch.cat(packed, dim=1),
            [_tokens(*size) for size in sizes],
        )

    def _embed(self, prompts: list[str], views: list[Copy]) -> list[Tensor]:
        encoder, parts = self._model.encoder, self._parts
        blocks = encoder.blocks(prompts, views)
        moved = parts.placed.encoding() if blocks else contextlib.nullcontext()
        with moved, self._watched("encode", blocks):
            return encoder.embed(prompts, views, parts.device)

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
        generator = torch.Generator("cpu").manual_seed(edit.seed + number)
        tokens = latents.noise(generator, *size, parts.dtype, parts.device)
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

        prompts = 1 if self._forward.together else self._prompts
        blocks = self._plan.forwards(prompts) * len(self._forward.blocks)
        with self._watched("denoise", blocks):
            return denoise(
                self._forward, steps, tokens, conditioning, edit.true_cfg_scale, self._plan,
                on_step, generator,
            )  # fmt: skip

    def plan(self) -> Plan:
        """Which steps do all the work in this edit."""
        settings, steps = self._model.settings, self._edit.steps
        turbo = self._edit.tier == "turbo" and self._forward.reuses
        every = settings.turbo_every if turbo else 1
        guided = settings.turbo_guided if turbo else (0.0, 1.0)
        return Plan.of(steps, steps if self._forward.causal else every, guided)

    def fitting(self, conditioning: Conditioning) -> Plan:
        """The plan with keys and values kept as they fit; where they do not, a full one."""
        plan, references = self._plan, conditioning.references.shape[1]
        if not plan.reuses:
            return plan
        text = max(prompt.shape[1] for prompt in conditioning.prompts)
        rows = text + math.prod(conditioning.shapes[0]) + references
        exact = self._edit.tier != "turbo"
        kept = self._model.kept(rows, references, len(conditioning.prompts), exact=exact)
        if kept is not None:
            return replace(plan, kept=kept)
        if not self._forward.causal:
            self._report.warn("tier_lowered")
        return Plan.full(plan.steps)

    def _rungs(self) -> Iterator[memory.Rung]:
        """What this edit can do when memory runs out; asked for one by one, as it does."""
        freed, *others = memory.rungs(self._parts, self._model.store.clear)
        yield freed
        if self._plan.reuses:
            code = "memory_freed" if self._forward.causal else "tier_lowered"
            yield memory.Rung(code, self._without_reuse)
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
