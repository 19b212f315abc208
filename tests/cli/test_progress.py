"""Progress: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import io

from vellumd.cli.progress import Progress, describe


class Terminal(io.StringIO):
    """A text stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def state(step: int, **more: object) -> dict[str, object]:
    """A progress of eight steps."""
    return {
        "phase": "denoise",
        "image": 1,
        "images": 1,
        "step": step,
        "steps": 8,
        "eta_s": None,
    } | more


def test_lines_elsewhere() -> None:
    """Each new state is one line without control characters; equal ones are not repeated."""
    stream = io.StringIO()
    with Progress("job 1", stream) as progress:
        for step in (1, 1, 2):
            progress.show(state(step))
    assert stream.getvalue() == "job 1\ndenoise, step 1 of 8\ndenoise, step 2 of 8\n"


def test_a_bar_on_a_terminal() -> None:
    """The bar fills on one line, which is left at the end."""
    stream = Terminal()
    with Progress("job 1", stream) as progress:
        progress.show(state(4))
        progress.show(state(8))
    lines = stream.getvalue().split("\r")
    assert lines[1].startswith("[############............] denoise, step 4 of 8")
    assert lines[2].startswith("[########################] denoise, step 8 of 8")
    assert stream.getvalue().endswith("\n")


def test_what_a_line_tells() -> None:
    """Phases without steps stay short; several images and the time left are told."""
    assert describe(state(0, phase="load", steps=0)) == "load"
    told = describe(state(3, image=2, images=4, eta_s=12.4))
    assert told == "denoise, image 2 of 4, step 3 of 8, 12 s left"
