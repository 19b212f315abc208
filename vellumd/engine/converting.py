"""`python -m vellumd.engine convert ORDER`: what `vellumd convert` runs apart from itself.

ORDER is a JSON object of `Wanted`. Says on standard error what it is going to do and how
far it is, on standard output where the artefact is.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path

from pydantic import BaseModel

from vellumd import artefact, errors, model_card, presets
from vellumd.engine import convert, faults
from vellumd.settings import EngineSettings

OK, FAILED, CONFIG, INTERRUPTED = 0, 1, 78, 130
AGAIN = "the same command goes on where it was."
SHOWN_S = 0.5
"""Seconds between two looks at the progress."""


class Wanted(BaseModel):
    """What to convert: LoRAs by role or file, with scales; `target` None for the usual place."""

    engine: EngineSettings
    target: Path | None = None
    loras: tuple[tuple[str, float], ...] = ()


def main(argv: Sequence[str]) -> int:
    """Convert as the first of `argv` says; the exit code."""
    try:
        made = make(Wanted.model_validate_json(argv[0]))
    except errors.ConfigError as error:
        print(f"vellumd: {error.message}", file=sys.stderr)
        return CONFIG
    except errors.VellumError as error:
        print(f"vellumd: {error.message} {error.remedy}", file=sys.stderr)
        return FAILED
    except KeyboardInterrupt:
        print(f"vellumd: stopped; {AGAIN}", file=sys.stderr)
        return INTERRUPTED
    except Exception as error:
        if not (why := shortage(error)):
            raise
        print(f"vellumd: {why}; {AGAIN}", file=sys.stderr)
        return FAILED
    print(made)
    return OK


def shortage(error: Exception) -> str | None:
    """What the machine lacks by `error`, or refuses; None for what is no fault of its."""
    if faults.is_memory(error):
        return "memory ran out"
    if isinstance(error, OSError):
        return f"{error.filename or 'the artefact'}: {error.strerror}"
    return None


def make(wanted: Wanted) -> Path:
    """Tell sizes and time, then convert."""
    engine = wanted.engine
    card = model_card.of(engine)
    model = model_card.opened(engine)
    loras = [convert.Lora(_file(engine, card, name), scale) for name, scale in wanted.loras]
    names = (name for name, _ in wanted.loras)
    presets.check_together(zip(names, (one.file for one in loras), strict=True), card)
    conversion = convert.Conversion(model, card, loras, engine.keep)
    target = wanted.target or artefact.home(engine.artifact_dir) / conversion.name
    if conversion.is_made(target):
        print(f"{card.name}: was made before, of the same files", file=sys.stderr)
        return target
    if conversion.fp8_source:
        print(f"note: {convert.FP8_ONLY}", file=sys.stderr)
    print(f"{card.name}: {conversion.needs()}", file=sys.stderr, flush=True)
    return conversion.run(target, _Progress())


def _file(engine: EngineSettings, card: model_card.ModelCard, name: str) -> Path:
    if Path(name).is_file():
        return Path(name)
    folder = model_card.folder(engine.model)
    found = model_card.find_lora(folder, card, engine.loras, name, engine.base)
    if found is None or not found.is_file():
        raise errors.UnknownLora(f"There is no LoRA {name!r}.")
    return found


class _Progress:
    """Written over itself on a terminal, else a line now and then."""

    def __init__(self) -> None:
        self._shown = 0.0
        self._told = ""
        self._every = SHOWN_S if sys.stderr.isatty() else 10.0

    def __call__(self, done: int, of: int) -> None:
        now = time.monotonic()
        if now - self._shown >= self._every or done >= of:
            self._shown = now
            end = "\r" if sys.stderr.isatty() and done < of else "\n"
            text = f"{min(done, of) / convert.GB:.2f} of {of / convert.GB:.2f} GB written{end}"
            if text != self._told:
                print(text, end="", file=sys.stderr, flush=True)
            self._told = text
