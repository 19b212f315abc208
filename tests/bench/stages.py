"""What an edit does outside the transformer, each part alone: files, pictures, prompts, VAE."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from PIL import Image

from tests.bench import vae
from tests.bench.edits import PROMPT, SIZE, pictures, reference
from tests.bench.median import Row, median, shares
from vellumd import images
from vellumd.engine import language
from vellumd.engine.copies import Copies, Copy, begin
from vellumd.engine.model import Model
from vellumd.models import LoraRef
from vellumd.settings import Limits

T = TypeVar("T")


@torch.inference_mode()
def measure(model: Model, folder: Path) -> dict[str, Any]:
    """Milliseconds of each part, of three pictures where not said otherwise.

    A part that fails has its error in place of its figure, and the others have theirs.
    """
    bench = Bench(model, pictures(folder, "new", 3))
    found: dict[str, Any] = {
        group.__name__: dict(rows(group)) for group in (bench.host, bench.encoder)
    }
    found["both prompts, by what they call"] = tried(bench.shares_of_encoder)
    return found | {"vae": vae.measure(model, bench.vae_picture())}


def rows(group: Callable[[], Iterator[tuple[str, Row]]]) -> Iterator[tuple[str, float | str]]:
    """The figures of a group's parts, as far as it gets."""
    try:
        for name, run in group():
            yield name, tried(partial(median, run))
    except Exception as error:  # noqa: BLE001
        yield "the others", repr(error)


def tried(measure: Callable[[], T]) -> T | str:
    """What is measured, or the error."""
    try:
        return measure()
    except Exception as error:  # noqa: BLE001
        return repr(error)


class Bench:
    """The parts of an edit of `files`, ready to run alone."""

    def __init__(self, model: Model, files: list[Path]) -> None:
        self._model = model
        self._files = files
        self._inputs = [reference(file) for file in files]
        self._numbers = itertools.count()
        self._canvas = images.Canvas.plan("match", [SIZE] * len(files), model.card.canvas_area)

    def _copies(self) -> Copies:
        card = self._model.card
        return Copies(self._files, self._inputs, self._canvas, Limits(), card.canvas_area)

    def host(self) -> Iterator[tuple[str, Row]]:
        """Work of the host: alone in one thread, and all copies as an edit makes them."""
        loaded = [images.load(file).flat for file in self._files]
        with self._copies() as copies:
            sizes = copies.reference_sizes
            views = [view.picture() for view in copies.views(self._model.card.vision_area)]
        yield "hash the files", lambda: [*map(images.sha256_of, self._files)]
        yield "decode", lambda: [images.load(file) for file in self._files]
        yield "fit one", lambda: self._canvas.fit(loaded[0])
        yield "resize to references", lambda: all_resized(loaded, sizes)
        yield "resize to views", lambda: all_resized(loaded, [view.size for view in views])
        yield "all copies, in threads", self._all_copies
        painted = Image.effect_noise((self._canvas.width, self._canvas.height), 90).convert("RGB")
        yield "finish one", lambda: images.check_output(self._canvas.finish(painted))
        lightning = [LoraRef(name="lightning-8")]
        yield "the same LoRA again", lambda: self._model.loras.use(lightning)
        yield "another LoRA's scale", self._rescale(lightning[0])
        self._model.loras.used()  # its hash is taken by a thread, which would slow what follows
        self._model.loras.use(())

    def _all_copies(self) -> None:
        with self._copies() as copies:
            wanted = [*copies.views(self._model.card.vision_area), *copies.references()]
            begin(wanted)
            for copy in wanted:
                copy.picture()

    def _rescale(self, lora: LoraRef) -> Row:
        numbers = iter(range(1, 100))

        def use() -> None:
            self._model.loras.use([lora.model_copy(update={"scale": 1 / (1 + next(numbers))})])

        return use

    def vae_picture(self) -> Image.Image:
        """A reference as the VAE gets it."""
        with self._copies() as copies:
            return copies.references()[0].picture()

    def encoder(self) -> Iterator[tuple[str, Row]]:
        """Two prompts with all new, the parts of that, a new prompt alone, and nothing new."""
        one, device, views = self._model.encoder, self._model.parts.device, self._views()
        inputs = one._processed(views, device)
        seen = one._look(inputs, device)
        begin, position = one._begin(inputs, seen, device)
        model = one._model.language_model
        language.read(model, [begin])

        def template() -> None:
            language.read(model, [one._begin(inputs, seen, device)[0]])

        def prompt() -> None:
            language.read(model, [one._text(PROMPT, begin.kept, position, device)])

        yield "both prompts", partial(self._embed, views, forget=True)
        yield "processor", lambda: one._processed(views, device)
        yield "vision tower", lambda: one._look(inputs, device)
        yield "begin", lambda: one._begin(inputs, seen, device)
        yield "template and pictures", template
        yield "tokens of a prompt", lambda: one._text(PROMPT, begin.kept, position, device)
        yield "one prompt", prompt
        yield "new prompt", partial(self._embed, views, forget=False)
        yield "new prompt of a new length", partial(self._embed, views, forget=False, longer=True)
        yield "nothing new", partial(self._embed, views, forget=False, fresh=False)
        yield "cut to length", lambda: one.readable(PROMPT)

    def shares_of_encoder(self) -> dict[str, float]:
        """Where the time of two prompts with all new goes, as they call it."""
        one = self._model.encoder
        parts = {
            "forget": (self._model.store, "clear"),
            "processor": (one, "_processed"),
            "vision tower": (one, "_look"),
            "begin": (one, "_begin"),
            "tokens of both prompts": (one, "_text"),
            "language model": (language, "read"),
        }
        return shares(partial(self._embed, self._views(), forget=True), parts)

    def _views(self) -> list[Copy]:
        """What the vision tower looks at, made."""
        with self._copies() as copies:
            made = copies.views(self._model.card.vision_area)
            return [Copy.of(view.picture(), *view.key) for view in made]

    def _embed(
        self, views: list[Copy], *, forget: bool, fresh: bool = True, longer: bool = False
    ) -> None:
        """Two prompts: a new one if it is to be `fresh`, of a new length too if `longer`."""
        if forget:
            self._model.store.clear()
        number = next(self._numbers) if fresh else 0
        prompt = PROMPT + (" snow" * number if longer else f" {number}")
        self._model.encoder.embed([prompt, " "], views, self._model.parts.device)


def all_resized(loaded: list[Image.Image], sizes: list[tuple[int, int]]) -> list[Image.Image]:
    """Copies of pictures, one after the other."""
    pairs = zip(loaded, sizes, strict=True)
    return [images.resized(picture, size) for picture, size in pairs]
