"""What the engine's tests are written with: pictures, edits, and an engine process."""

from __future__ import annotations

import contextlib
import io
import queue
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vellumd import protocol
from vellumd.models import SUFFIXES, ImageRef, ResolvedEdit, UsedLora

SECONDS = 120
"""Longest wait for a frame; torch's import alone may take ten on a busy machine."""
TYPES = {"PNG": "image/png", "JPEG": "image/jpeg", "WEBP": "image/webp"}


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    """A colourful picture with large areas, the same for the same arguments."""
    noise = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)


def encoded(image: Image.Image, format: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


PICTURES = [encoded(picture(80, 60, seed)) for seed in (1, 2)]
"""Two small pictures, which the fixture `files` holds as files."""


def reference(data: bytes) -> ImageRef:
    with Image.open(io.BytesIO(data)) as image:
        kind, (width, height) = TYPES[str(image.format)], image.size
        if kind == "image/jpeg" and image.getexif().get(0x0112, 1) > 4:  # lying on its side
            width, height = height, width
    return ImageRef(sha256=sha256(data).hexdigest(), width=width, height=height, type=kind)


def resolved(images: Sequence[ImageRef], **fields: Any) -> ResolvedEdit:
    """An edit of two quick steps without guidance, unless `fields` say otherwise."""
    quick: dict[str, Any] = {
        "model": "demo", "prompt": "make it red", "steps": 2, "true_cfg_scale": 1.0, "seed": 7,
    }  # fmt: skip
    return ResolvedEdit(**{**quick, **fields}, images=tuple(images))


def calls_of(function: str, work: Callable[[], object]) -> int:
    """How often `work` calls torch's `function`."""
    from torch.overrides import TorchFunctionMode

    class Counting(TorchFunctionMode):
        calls = 0

        def __torch_function__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            self.calls += func.__name__ == function
            return func(*args, **(kwargs or {}))

    with Counting() as counting:
        work()
    return counting.calls


@contextlib.contextmanager
def stopped(blocks: Iterable[Any], after: int, how: str) -> Iterator[Callable[[], bool]]:
    """What tells a run to stop once so many of `blocks` have begun: by a cancel, or an error.

    That many have begun when it ends.
    """
    begun = 0

    def count(*_: object) -> None:
        nonlocal begun
        begun += 1
        if how == "error" and begun == after:
            raise ZeroDivisionError

    handles = [block.register_forward_pre_hook(count) for block in blocks]
    yield lambda: how == "cancel" and begun >= after
    for handle in handles:
        handle.remove()
    assert begun == after


class Told:
    """A `protocol.Report` that remembers."""

    def __init__(self, wants_preview: bool = False) -> None:
        self.wants_preview = wants_preview
        self.beats: list[tuple[str, int, int]] = []
        self.steps: list[tuple[int, int, int, int]] = []
        self.previews: list[Image.Image] = []
        self.warnings: list[str] = []
        self.loras: Sequence[UsedLora] = ()

    def beat(self, phase: str, done: int = 0, of: int = 0) -> None:
        self.beats.append((phase, done, of))

    def step(self, image: int, images: int, step: int, steps: int) -> None:
        self.steps.append((image, images, step, steps))

    def preview(self, picture: Image.Image) -> None:
        self.previews.append(picture)

    def warn(self, code: str) -> None:
        self.warnings.append(code)

    def used(self, loras: Sequence[UsedLora]) -> None:
        self.loras = loras


class Child:
    """An engine process, spoken to over its real pipes."""

    def __init__(self, spool: Path, environment: dict[str, str]) -> None:
        self.spool = spool
        self.process = subprocess.Popen(
            [sys.executable, "-m", "vellumd.engine"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment,
        )
        self._frames: queue.Queue[protocol.FromEngine | None] = queue.Queue()
        self.log = b""
        self._readers = [
            threading.Thread(target=read, daemon=True) for read in (self._read, self._read_log)
        ]
        for reader in self._readers:
            reader.start()

    def _read(self) -> None:
        assert self.process.stdout
        while len(header := self.process.stdout.read(4)) == 4:
            body = self.process.stdout.read(struct.unpack(">I", header)[0])
            self._frames.put(protocol.parse_from_engine(body))
        self._frames.put(None)

    def _read_log(self) -> None:
        assert self.process.stderr
        for line in self.process.stderr:
            self.log += line

    def send(self, frame: protocol.ToEngine) -> None:
        assert self.process.stdin
        self.process.stdin.write(protocol.pack(frame))
        self.process.stdin.flush()

    def next(self) -> protocol.FromEngine | None:
        """The next frame that is no beat; None when the child has closed its pipe."""
        while isinstance(frame := self._frames.get(timeout=SECONDS), protocol.Beat):
            pass
        return frame

    def until(self, *kinds: type) -> list[Any]:
        """Frames up to the first of `kinds`, that one last; beats included."""
        frames = []
        while True:
            frame = self._frames.get(timeout=SECONDS)
            assert frame is not None, self.log.decode()
            frames.append(frame)
            if isinstance(frame, kinds):
                return frames

    def edit(
        self, job: str, pictures: Sequence[bytes], mask: bytes | None = None, **fields: Any
    ) -> protocol.Edit:
        """Put the inputs into the job's folder; the frame that asks for the edit."""
        folder = self.spool / job
        folder.mkdir(exist_ok=True)
        references = [reference(data) for data in pictures]
        for number, (ref, data) in enumerate(zip(references, pictures, strict=True), 1):
            (folder / f"input-{number}.{SUFFIXES[ref.type]}").write_bytes(data)
        if mask is not None:
            fields["mask"] = reference(mask)
            (folder / f"mask.{SUFFIXES[fields['mask'].type]}").write_bytes(mask)
        return protocol.Edit(job=job, edit=resolved(references, **fields))

    def run(self, job: str, pictures: Sequence[bytes], **fields: Any) -> Any:
        """Do the edit; its `Done` or `Failed`."""
        self.send(self.edit(job, pictures, **fields))
        return self.until(protocol.Done, protocol.Failed)[-1]

    def ended(self) -> int:
        """The exit status, once the child and its log have ended."""
        status = self.process.wait(SECONDS)
        for reader in self._readers:
            reader.join(SECONDS)
        return status

    def close(self) -> None:
        self.process.kill()
        self.ended()
        for pipe in (self.process.stdin, self.process.stdout, self.process.stderr):
            assert pipe
            with contextlib.suppress(BrokenPipeError):
                pipe.close()
