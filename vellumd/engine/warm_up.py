"""The warm-up of a loaded engine, which is done while no edit is there and waits for none."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from vellumd import errors
from vellumd.engine import faults
from vellumd.engine.report import PipeReport
from vellumd.models import UsedLora
from vellumd.protocol import WARM_UP, Beat, FromEngine, Warm, WarmEngine

if TYPE_CHECKING:
    from PIL import Image

log = logging.getLogger(__name__)


class WarmUp:
    """The warm-up of one engine. `pending` until it ended by itself, `warm` if it did well.

    One that an edit breaks off begins anew after it; what was compiled by then is kept, so it
    comes further each time.
    """

    def __init__(
        self, engine: WarmEngine, send: Callable[[FromEngine], None], awaited: Callable[[], bool]
    ) -> None:
        """`awaited` tells whether an edit is there."""
        self._engine = engine
        self._send = send
        self._awaited = awaited
        self._seconds = 0.0
        self.pending = True
        self.warm = False

    def go_on(self) -> None:
        """Warm up until it is done or an edit is there; a failure ends it too.

        What a failure leaves is for edits to tell. Raises errors that have lost the card.
        """
        began = time.monotonic()
        self._send(Beat(phase=WARM_UP))  # before anything that could end the process
        try:
            self._engine.warm_up(_Signs(self._send), self._awaited)
        except errors.Cancelled:
            log.info("the warm-up gives way to an edit")
        except Exception as error:
            if faults.is_sticky(error):
                raise
            log.exception("the warm-up failed")
            self.pending = False
        else:
            self.pending, self.warm = False, True
        self._seconds += time.monotonic() - began
        if not self.pending:
            self._send(Warm(seconds=round(self._seconds, 3)))
            self._send(Beat(phase="idle"))


class _Signs:
    """The `protocol.Report` of a warm-up: signs of life alone."""

    wants_preview = False

    def __init__(self, send: Callable[[FromEngine], None]) -> None:
        self._pipe = PipeReport(send, preview=lambda: False)

    def beat(self, phase: str, done: int = 0, of: int = 0) -> None:
        """See `protocol.Report`; all phases are one."""
        self._pipe.beat(WARM_UP, done, of)

    def step(self, image: int, images: int, step: int, steps: int) -> None:
        """See `protocol.Report`."""
        self._pipe.beat(WARM_UP, step, steps)

    def preview(self, picture: Image.Image) -> None:
        """See `protocol.Report`; nobody looks."""

    def warn(self, code: str) -> None:
        """See `protocol.Report`; there is no job to warn."""
        log.info("the warm-up: %s", code)

    def used(self, loras: Sequence[UsedLora]) -> None:
        """See `protocol.Report`; there is no result."""
