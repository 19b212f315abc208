"""Whether a settled file is a whole picture that nobody is writing."""

from __future__ import annotations

from enum import Enum
from pathlib import Path

from vellumd import errors, images, platform

SMALL = 16
"""Pixels a JPEG's shorter side is decoded to: all rows are read, an eighth of each made."""


class State(Enum):
    """What a look at a picture found."""

    WHOLE = "whole"
    IN_USE = "in use"
    INCOMPLETE = "incomplete"


def look(picture: Path, *, on_share: bool = False) -> tuple[State, errors.VellumError | None]:
    """Look at a file, to its end and its last row; why it is not whole.

    A file that is of no known format counts as incomplete: some writers set its size
    first and leave zeros. Raises OSError where it cannot be read.
    """
    if platform.being_written(picture, on_share=on_share):
        return State.IN_USE, None
    try:
        images.load(picture, target=SMALL)
    except (errors.BadImage, errors.UnsupportedFormat) as error:
        return State.INCOMPLETE, error
    except errors.VellumError:  # too large: the limits are told when it is staged
        pass
    return State.WHOLE, None
