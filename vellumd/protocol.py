"""What daemon and engine process agree on: frames on a pipe, and the engine contract.

Frames are JSON objects with a 4-byte big-endian length in front, on the child's stdin
and stdout. Pictures travel as files; the one exception is a live preview of at most
32 KiB.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, BinaryIO, Literal, Protocol

from pydantic import Field, TypeAdapter

from vellumd.models import Frozen, Notice, Progress, ResolvedEdit, Result, UsedLora

if TYPE_CHECKING:
    from PIL import Image

VERSION = 1
FRAME_MAX = 4 << 20
"""Largest frame in bytes; a longer one means that the pipe is out of step."""
PREVIEW_MAX = 32 << 10
"""Largest preview in bytes of JPEG."""
WARM_UP = "warm up"
"""Phase of beats while a loaded engine warms up."""

_LENGTH = struct.Struct(">I")


class ProtocolError(Exception):
    """The pipe carries something that is not a frame."""


# daemon → engine


class Init(Frozen):
    """First frame: everything the engine may know; it reads neither environment nor TOML.

    `engine` is the import string of the factory (`package.module:name`), `settings` the
    `[engine]` section, `options` the section of the plugin that brought the engine,
    `spool` the folder of job folders, `cache` a folder for what can be made again.
    `warm_up`: whether a loaded engine may warm up.
    """

    type: Literal["init"] = "init"
    protocol: int = VERSION
    engine: str
    settings: dict[str, Any]
    options: dict[str, Any] = {}
    device: str = "auto"
    spool: Path
    cache: Path
    limits: dict[str, Any] = {}
    warm_up: bool = True


class Edit(Frozen):
    """Do this edit with the inputs in `spool/<job>`, write the results there."""

    type: Literal["edit"] = "edit"
    job: str
    edit: ResolvedEdit


class Cancel(Frozen):
    """Stop the running edit within one transformer block."""

    type: Literal["cancel"] = "cancel"
    job: str


class Preview(Frozen):
    """Send previews of running steps, or stop sending them."""

    type: Literal["preview"] = "preview"
    on: bool


class Probe(Frozen):
    """Are you there? An idle engine answers with a beat of phase `idle`."""

    type: Literal["probe"] = "probe"


# engine → daemon


class Hello(Frozen):
    """The child runs; loading begins."""

    type: Literal["hello"] = "hello"
    protocol: int = VERSION
    pid: int


class Beat(Frozen):
    """Sign of life from the work itself: `done` of `of` units of `phase`."""

    type: Literal["beat"] = "beat"
    phase: str
    done: int = 0
    of: int = 0


class Capabilities(Frozen):
    """What a loaded engine can do, as shown by /v1/capabilities.

    `warms_up`: its first edits take longer than others unless it warmed up before.
    """

    model: str
    device: str
    tiers: tuple[str, ...] = ("standard",)
    recipe: str = ""
    memory_plan: str = ""
    loras: tuple[str, ...] = ()
    load_s: float = 0.0
    notes: tuple[str, ...] = ()
    warms_up: bool = False


class Ready(Frozen):
    """Loading is over; edits may come."""

    type: Literal["ready"] = "ready"
    capabilities: Capabilities


class Warm(Frozen):
    """The warm-up is over; the engine worked `seconds` at it. Edits came before and meanwhile."""

    type: Literal["warm"] = "warm"
    seconds: float


class Step(Frozen):
    """Progress of the running edit."""

    type: Literal["step"] = "step"
    job: str
    progress: Progress


class PreviewImage(Frozen):
    """A small JPEG of the running edit, base64."""

    type: Literal["preview_image"] = "preview_image"
    job: str
    step: int
    jpeg: str = Field(max_length=PREVIEW_MAX * 4 // 3 + 4)


class Done(Frozen):
    """`result.json` is on disk; these are its results. `timings` are seconds by phase."""

    type: Literal["done"] = "done"
    job: str
    results: tuple[Result, ...]
    elapsed_s: float
    timings: dict[str, float] = {}
    warnings: tuple[Notice, ...] = ()


class Failed(Frozen):
    """The edit ended without result; `code` as in errors. `cancelled` is one of them.

    `warnings` are those it had earned by then. `unstored`: only room for the result was
    missing, so the edit succeeds once there is some.
    """

    type: Literal["failed"] = "failed"
    job: str
    code: str
    message: str
    warnings: tuple[Notice, ...] = ()
    unstored: bool = False


class Fatal(Frozen):
    """The engine cannot load; the child ends after this frame."""

    type: Literal["fatal"] = "fatal"
    code: str
    message: str


ToEngine = Init | Edit | Cancel | Preview | Probe
FromEngine = Hello | Beat | Ready | Warm | Step | PreviewImage | Done | Failed | Fatal

_to_engine: TypeAdapter[ToEngine] = TypeAdapter(Annotated[ToEngine, Field(discriminator="type")])
_from_engine: TypeAdapter[FromEngine] = TypeAdapter(
    Annotated[FromEngine, Field(discriminator="type")]
)


def pack(frame: ToEngine | FromEngine) -> bytes:
    """The bytes of `frame`, length in front."""
    body = frame.model_dump_json().encode()
    return _LENGTH.pack(len(body)) + body


def length_of(header: bytes) -> int:
    """Body length announced by a 4-byte header; raises `ProtocolError` if absurd."""
    size = int(_LENGTH.unpack(header)[0])
    if size > FRAME_MAX:
        raise ProtocolError(f"frame of {size} bytes")
    return size


def parse_from_engine(body: bytes) -> FromEngine:
    """The frame in `body`; raises `ProtocolError`."""
    try:
        return _from_engine.validate_json(body)
    except ValueError as error:
        raise ProtocolError("not a frame of the engine") from error


def read_to_engine(pipe: BinaryIO) -> ToEngine | None:
    """The next frame for the engine, blocking; None at the end of the pipe."""
    header = pipe.read(_LENGTH.size)
    if len(header) < _LENGTH.size:
        return None
    body = pipe.read(length_of(header))
    try:
        return _to_engine.validate_json(body)
    except ValueError as error:
        raise ProtocolError("not a frame of the daemon") from error


# the contract of an engine


class Report(Protocol):
    """How an engine tells what it does. Every call is cheap and counts as a beat."""

    @property
    def wants_preview(self) -> bool:
        """Whether somebody looks at previews right now."""

    def beat(self, phase: str, done: int = 0, of: int = 0) -> None:
        """Sign of life: `done` of `of` units of `phase`."""

    def step(self, image: int, images: int, step: int, steps: int) -> None:
        """Step `step` of `steps` of result `image` of `images` is finished (from 1)."""

    def preview(self, picture: Image.Image) -> None:
        """Show a small picture of the running step."""

    def warn(self, code: str) -> None:
        """Attach the warning `code` of `errors.WARNINGS` to the job."""

    def used(self, loras: Sequence[UsedLora]) -> None:
        """Tell which files LoRAs came from, before the picture that they took part in."""


class Engine(Protocol):
    """A thing that edits pictures. Made in the child by `factory(init: Init) -> Engine`.

    One thread calls it, one edit at a time.
    """

    def load(self, report: Report) -> Capabilities:
        """Bring the weights up. Raises `ModelMissing` or `ModelInvalid`."""

    def edit(
        self,
        edit: ResolvedEdit,
        images: list[Path],
        report: Report,
        cancelled: Callable[[], bool],
    ) -> Iterator[Image.Image]:
        """Yield `edit.n` pictures in their final size.

        `images` are whole, checked files in the order of `edit.images`. `cancelled` is
        asked at least once per transformer block; when true, raise `errors.Cancelled`.
        """

    def unload(self) -> None:
        """Let go of the card's memory."""


class WarmEngine(Engine, Protocol):
    """An engine whose `Capabilities.warms_up` is true."""

    def warm_up(self, report: Report, cancelled: Callable[[], bool]) -> None:
        """Do now what the first edit would have to: compile, choose kernels, fill pools.

        Called after `load`, whenever no edit is there, until it returns. `cancelled` is
        asked at least once per transformer block; when true, an edit waits: raise
        `errors.Cancelled`, and be called again after it.
        """
