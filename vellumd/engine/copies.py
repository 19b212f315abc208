"""The copies of an edit's pictures that the models look at, made when they are wanted."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import PriorityQueue

from PIL import Image

from vellumd import images
from vellumd.images import reference_size
from vellumd.models import ImageRef
from vellumd.settings import Limits

THREADS = 4
"""Pictures that are decoded or resized at the same time; Pillow works without the GIL."""

RATIO_MAX = 100
"""Beyond it a picture's copy is stretched: the vision tower refuses more than 200 to 1."""

Pending = Future[Image.Image]
Make = Callable[[], Image.Image]


def view_size(width: int, height: int, area: int) -> tuple[int, int]:
    """Width and height of the copy of a picture that the vision tower looks at."""
    width, height = min(width, RATIO_MAX * height), min(height, RATIO_MAX * width)
    return reference_size(width, height, area)


@dataclass(frozen=True)
class Copy:
    """A copy of one input.

    `key` tells its pixels without making it: the SHA-256 of the input's file, and what is
    done to it. `begin` starts the making, once, and gives what will hold the picture.
    """

    key: tuple[Hashable, ...]
    begin: Callable[[], Pending]

    def picture(self) -> Image.Image:
        """Its pixels; raises `BadImage` where the input cannot be decoded."""
        return self.begin().result()

    @classmethod
    def of(cls, picture: Image.Image, *key: Hashable) -> Copy:
        """One that is there already."""
        made = Pending()
        made.set_result(picture)
        return cls(key, lambda: made)


class Copies:
    """All copies of an edit's inputs. As a context, it ends its threads."""

    def __init__(
        self,
        files: Sequence[Path],
        inputs: Sequence[ImageRef],
        canvas: images.Canvas,
        limits: Limits,
        area: int,
    ) -> None:
        """`area`: pixels of a reference. `inputs` tell the `files`' hashes and upright sizes."""
        self._files = files
        self._inputs = inputs
        self._canvas = canvas
        self._limits = limits
        self._area = area
        self._begun: dict[Hashable, Pending] = {}
        self._ready: PriorityQueue[tuple[int, Pending, Make]] = PriorityQueue()
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="copies")

    def __enter__(self) -> Copies:
        return self

    def __exit__(self, *_: object) -> None:
        self._threads.shutdown(cancel_futures=True)
        for made in self._begun.values():
            made.cancel()

    def views(self, area: int) -> list[Copy]:
        """The small stretched copies, of `area` pixels, that the vision tower looks at.

        Where image 1 is fitted into the canvas, it is seen there too; else the input
        itself, as in the stock pipeline.
        """
        first = self._fitted() if self._canvas.box else self._decoded(0)
        sizes = [(picture.width, picture.height) for picture in self._inputs]
        if self._canvas.box:
            sizes[0] = self._canvas.width, self._canvas.height
        seen = [first, *map(self._decoded, range(1, len(sizes)))]
        return [
            self._resized(copy, view_size(*size, area))
            for copy, size in zip(seen, sizes, strict=True)
        ]

    def references(self) -> list[Copy]:
        """The copies that the transformer sees: image 1 as the canvas says."""
        others = [
            self._resized(self._decoded(n), self.reference_sizes[n])
            for n in range(1, len(self._inputs))
        ]
        return [self._fitted(), *others]

    @property
    def reference_sizes(self) -> list[tuple[int, int]]:
        """Width and height of each reference."""
        others = [reference_size(one.width, one.height, self._area) for one in self._inputs[1:]]
        return [self._canvas.reference, *others]

    def _decoded(self, n: int) -> Copy:
        return self._copy(
            (self._inputs[n].sha256,), lambda: images.load(self._files[n], self._limits).flat
        )

    def _fitted(self) -> Copy:
        canvas = self._canvas
        return self._copy(
            (self._inputs[0].sha256, "fitted", canvas.reference, canvas.box),
            canvas.fit,
            self._decoded(0),
        )

    def _resized(self, source: Copy, size: tuple[int, int]) -> Copy:
        return self._copy(
            (*source.key, "resized", size),
            lambda picture: images.resized(picture, size),
            source,
        )

    def _copy(
        self,
        key: tuple[Hashable, ...],
        make: Callable[..., Image.Image],
        of: Copy | None = None,
    ) -> Copy:
        """What `make` makes `of` another copy, or of nothing, in one of the threads."""

        def begin() -> Pending:
            if key not in self._begun:
                source = of.begin() if of else None
                made = self._begun[key] = Pending()
                turn = len(self._begun)
                if source is None:
                    self._submit(turn, made, make)
                else:
                    source.add_done_callback(
                        lambda done: self._submit(turn, made, lambda: make(done.result()))
                    )
            return self._begun[key]

        return Copy(key, begin)

    def _submit(self, turn: int, made: Pending, make: Make) -> None:
        """Have what can be made now wait for a thread: no thread waits for a source."""
        self._ready.put((turn, made, make))
        try:
            self._threads.submit(self._make_first)
        except RuntimeError:  # they have ended
            made.cancel()

    def _make_first(self) -> None:
        """Make what was begun first of all that is ready."""
        _, made, make = self._ready.get_nowait()
        try:
            picture = make()
        except Exception as error:  # noqa: BLE001
            made.set_exception(error)
        else:
            made.set_result(picture)


def begin(copies: Iterable[Copy]) -> None:
    """Have all of `copies` made, those that are wanted first in front."""
    for copy in copies:
        copy.begin()
