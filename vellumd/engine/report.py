"""What an engine tells, turned into frames at a bearable rate."""

from __future__ import annotations

import base64
import io
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from vellumd.models import Notice, Progress, UsedLora, notice
from vellumd.protocol import PREVIEW_MAX, Beat, FromEngine, PreviewImage, Step

if TYPE_CHECKING:
    from PIL import Image

BEAT_S = 0.05
"""Least seconds between two beats of one phase: a toy model has hundreds of blocks a second."""
PREVIEW_QUALITY = 80


class PipeReport:
    """The `protocol.Report` of one load or one edit, sent as frames.

    The phases told by beats also give `timings`, seconds by phase.
    """

    def __init__(
        self, send: Callable[[FromEngine], None], job: str = "", *, preview: Callable[[], bool]
    ) -> None:
        self._send = send
        self._job = job
        self._preview = preview
        self._phase = ""
        self._since = self._sent = self._first_step = time.monotonic()
        self._step = 0
        self._seconds: dict[str, float] = {}
        self.warnings: list[str] = []
        self.loras: Sequence[UsedLora] = ()

    @property
    def wants_preview(self) -> bool:
        """Whether somebody looks at previews right now."""
        return self._preview()

    def beat(self, phase: str, done: int = 0, of: int = 0) -> None:
        """Send a beat: always the first of a phase, then one per `BEAT_S` at most."""
        now = time.monotonic()
        if phase != self._phase:
            self._turn(phase, now)
        elif now - self._sent < BEAT_S:
            return
        self._sent = now
        self._send(Beat(phase=phase, done=done, of=of))

    def _turn(self, phase: str, now: float) -> None:
        """Book the time of the phase that ends now."""
        if self._phase:
            self._seconds[self._phase] = self._seconds.get(self._phase, 0) + now - self._since
        if phase == "denoise" and phase not in self._seconds:
            self._first_step = now
        self._phase, self._since = phase, now

    def timings(self) -> dict[str, float]:
        """Seconds by phase until now."""
        self._turn(self._phase, time.monotonic())
        return {phase: round(seconds, 4) for phase, seconds in self._seconds.items()}

    def step(self, image: int, images: int, step: int, steps: int) -> None:
        """Send that a step is done; the time left follows from the mean step so far."""
        done, total = (image - 1) * steps + step, images * steps
        self._step = done
        mean = (time.monotonic() - self._first_step) / done
        progress = Progress(
            phase="denoise", image=image, images=images, step=step, steps=steps,
            eta_s=round(mean * (total - done), 2),
        )  # fmt: skip
        self._send(Step(job=self._job, progress=progress))

    def preview(self, picture: Image.Image) -> None:
        """Send `picture` as JPEG, halved until it fits into a frame."""
        data = _jpeg(picture)
        while len(data) > PREVIEW_MAX:
            picture = picture.reduce(2)
            data = _jpeg(picture)
        jpeg = base64.b64encode(data).decode()
        self._send(PreviewImage(job=self._job, step=self._step, jpeg=jpeg))

    def warn(self, code: str) -> None:
        """Attach the warning `code` to the job, once."""
        if code not in self.warnings:
            self.warnings.append(code)

    def used(self, loras: Sequence[UsedLora]) -> None:
        """Keep which LoRAs took part, for whoever writes the results."""
        self.loras = loras

    def notices(self) -> tuple[Notice, ...]:
        """The warnings so far, with their texts."""
        return tuple(notice(code) for code in self.warnings)


def _jpeg(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.convert("RGB").save(buffer, "JPEG", quality=PREVIEW_QUALITY)
    return buffer.getvalue()
