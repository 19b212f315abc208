"""What vellumd talks about: requests, resolved edits, jobs, events.

Every door translates its world into an `EditRequest` and a `Job` into its reply.
All models are immutable; a change makes a new object.
"""

from __future__ import annotations

import enum
import hashlib
import json
import random
import re
import threading
import time
import uuid
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    AliasChoices,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    JsonValue,
    PlainSerializer,
    ValidationError,
    field_validator,
)

from vellumd import errors
from vellumd.fields import by_name, nearest

META_BYTES = 4096
"""Largest `meta` as compact JSON, and largest private `reply` of a delivery."""

SEED_MAX = 2**63 - 1


class Frozen(BaseModel):
    """An immutable value: unknown fields and infinities are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


def _rfc3339(at: datetime) -> str:
    return at.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


Moment = Annotated[datetime, PlainSerializer(_rfc3339, when_used="json")]
"""A point in time; RFC 3339 in UTC with milliseconds when written as JSON."""


def moment(milliseconds: int) -> datetime:
    """The UTC time of `milliseconds` since the Unix epoch."""
    return datetime.fromtimestamp(milliseconds / 1000, UTC)


def now_ms() -> int:
    """Milliseconds since the Unix epoch, for people to read; never used to order jobs."""
    return time.time_ns() // 1_000_000


_id_lock = threading.Lock()
_id_last = 0
# An id is no secret. A generator of our own, unlike os.urandom, is no system call, which
# would hand the interpreter to another thread in the middle of every request (measured).
_id_random = random.Random()


JOB_ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
"""A job's id: a UUID as `new_job_id` writes it. Its folder has that name."""


def new_job_id() -> str:
    """A UUIDv7 (RFC 9562 §5.7), strictly increasing within this process.

    The 12 bits behind the milliseconds count up (method 3 of §6.2), so that ids made
    in one millisecond still sort by age.
    """
    global _id_last
    with _id_lock:
        ticks = max((time.time_ns() * 4096) // 1_000_000, _id_last + 1)
        _id_last = ticks
    value = (ticks >> 12 & (1 << 48) - 1) << 80 | 0x7 << 76 | (ticks & 0xFFF) << 64
    value |= 0b10 << 62 | _id_random.getrandbits(62)
    return str(uuid.UUID(int=value))


class ImageRef(Frozen):
    """A picture that the spool holds, named by the SHA-256 of its bytes.

    `width` and `height` are pixels as a person sees them: after EXIF orientation.
    """

    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    width: int = Field(ge=1)
    height: int = Field(ge=1)
    type: str = "image/png"
    bytes: int = Field(default=0, ge=0)
    name: str = Field(default="", max_length=255)


SCALE_MAX = 4
"""Largest strength of a LoRA, either way."""


class LoraRef(Frozen):
    """A LoRA by role (`lightning-8`) or file name without ending, and its strength."""

    name: str = Field(min_length=1, max_length=255, pattern=r"^[\w][\w .+-]*$")
    scale: float = Field(default=1.0, ge=-SCALE_MAX, le=SCALE_MAX)


class UsedLora(LoraRef):
    """A LoRA that took part in an edit, and the file that it came from: its name and SHA-256.

    Without a file it came inside the model's weights; without a hash the file changed since.
    """

    file: str | None = None
    sha256: str | None = None


class OutputOptions(Frozen):
    """How result pictures are written.

    `same` keeps the format of image 1 (TIFF, HEIC and AVIF become JPEG).
    """

    format: Literal["png", "jpeg", "webp", "same"] | None = None
    quality: int | None = Field(default=None, ge=1, le=100)
    keep: tuple[Literal["exif", "xmp", "iptc", "icc"], ...] | None = None
    embed: Literal["full", "id", "none"] | None = None
    alpha: Literal["flatten", "reapply"] | None = None


class ResolvedOutput(Frozen):
    """`OutputOptions` with every field decided."""

    format: Literal["png", "jpeg", "webp", "same"] = "png"
    quality: int = 95
    keep: tuple[Literal["exif", "xmp", "iptc", "icc"], ...] = ()
    embed: Literal["full", "id", "none"] = "full"
    alpha: Literal["flatten", "reapply"] = "flatten"


_SIZE = re.compile(r"match|auto|fit:(\d+(?:\.\d+)?)|(\d{1,5})x(\d{1,5})")
SIZE_MIN, SIZE_MAX, FIT_MAX = 16, 4096, 16.0


def check_size(size: str) -> str:
    """`size` if it is `match`, `auto`, `fit:N` (megapixels) or `WxH` (pixels).

    Raises `BadSize` otherwise.
    """
    found = _SIZE.fullmatch(size)
    if not found:
        raise errors.BadSize(f"{size[:40]!r} is not a size.")
    fit, width, height = found.groups()
    if fit and not 0.01 <= float(fit) <= FIT_MAX:
        raise errors.BadSize(f"fit must be between 0.01 and {FIT_MAX:g} megapixels.")
    if width and not all(SIZE_MIN <= int(side) <= SIZE_MAX for side in (width, height)):
        raise errors.BadSize(f"Each side must be between {SIZE_MIN} and {SIZE_MAX} pixels.")
    return size


def asked_area(size: str) -> int:
    """Pixels of a size of `WxH`; 0 of the others, which the model's canvas bounds."""
    found = _SIZE.fullmatch(size)
    return int(found[2]) * int(found[3]) if found and found[2] else 0


Tier = Literal["reference", "standard", "swift", "turbo"]
REQUEST_TIERS = ("standard", "swift", "turbo")


def _one_or_many(value: object) -> object:
    """A single picture stands for a list of one."""
    return value if isinstance(value, (list, tuple)) else [value]


def _plain(text: str | None) -> str | None:
    """Refuse NUL, where C libraries end a text, and halves of characters that UTF-8 has not."""
    if text and "\0" in text:
        raise ValueError("must not hold a NUL character")
    if text and any("\ud800" <= character <= "\udfff" for character in text):
        raise ValueError("must not hold half of a surrogate pair")
    return text


Text = Annotated[str | None, AfterValidator(_plain)]
"""A text that every part can read, or none."""


def _random_seed(value: object) -> object:
    """-1, as other tools write it, asks for a random seed."""
    return None if value in (-1, "-1") else value


class EditOptions(Frozen):
    """All of an edit but its pictures: what a preset may fix and a request override."""

    prompt: Text = None
    negative_prompt: Text = None
    steps: int | None = Field(
        default=None,
        ge=1,
        le=100,
        validation_alias=AliasChoices("steps", "num_steps", "num_inference_steps"),
        description="Number of denoising steps.",
    )
    true_cfg_scale: float | None = Field(
        default=None,
        ge=0,
        le=20,
        validation_alias=AliasChoices("true_cfg_scale", "cfg"),
        description="Classifier-free guidance; above 1 each step costs two forwards.",
    )
    seed: Annotated[int | None, BeforeValidator(_random_seed)] = Field(
        default=None, ge=0, le=SEED_MAX, description="Seed of image 1; image k uses seed + k - 1."
    )
    size: Annotated[str, BeforeValidator(lambda v: check_size(v) if isinstance(v, str) else v)] | (
        None
    ) = Field(default=None, description="match, auto, fit:MEGAPIXELS or WIDTHxHEIGHT.")
    n: int | None = Field(default=None, ge=1, le=4, description="Number of results.")
    tier: Tier | None = None
    loras: tuple[LoraRef, ...] | None = Field(default=None, max_length=8)
    output: OutputOptions | None = None
    priority: int | None = Field(default=None, ge=-100, le=100)

    @field_validator("tier", mode="before")
    @classmethod
    def _known_tier(cls, value: object) -> object:
        if isinstance(value, str) and value not in (*REQUEST_TIERS, "reference"):
            raise errors.UnknownTier(f"{value[:40]!r} is not a tier.")
        return value


class EditRequest(EditOptions):
    """An edit as asked for, before preset and settings fill what is left open."""

    images: Annotated[tuple[ImageRef, ...], BeforeValidator(_one_or_many)] = Field(
        validation_alias=AliasChoices("images", "image")
    )
    preset: str | None = Field(default=None, max_length=64)
    mask: ImageRef | None = Field(
        default=None, description="White (or transparent) where the picture may change."
    )
    batch: Text = Field(default=None, max_length=128)
    client_id: Text = Field(default=None, max_length=128)
    meta: JsonValue = None

    @field_validator("meta")
    @classmethod
    def _small_meta(cls, value: JsonValue) -> JsonValue:
        if len(json.dumps(value, separators=(",", ":")).encode()) > META_BYTES:
            raise ValueError(f"meta must be at most {META_BYTES} bytes of JSON")
        return value

    @classmethod
    def parse(cls, fields: dict[str, Any]) -> EditRequest:
        """The request made of `fields`; raises the coded error for the first wrong one."""
        try:
            return cls.model_validate(fields)
        except ValidationError as error:
            raise bad_request(cls, error) from None

    def digest(self) -> str:
        """SHA-256 of the canonical request: equal digests ask for the same edit.

        Pictures count by content, not by name; used for idempotency keys.
        """
        fields = self.model_dump(mode="json", exclude_none=True)
        for picture in (*fields["images"], *([fields["mask"]] if "mask" in fields else ())):
            picture.pop("name", None)
        canonical = json.dumps(fields, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()


def bad_request(model: type[BaseModel], error: ValidationError) -> errors.BadRequest:
    """The first complaint about a `model` as our error: names the field, never its value."""
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    path = [str(part) for part in first["loc"]]
    said = first["msg"].removeprefix("Value error, ")
    if first["type"] == "extra_forbidden":
        said = _unknown(model, path)
    elif first["type"] == "model_type":  # names our class
        said = "must be an object"
    return errors.BadRequest(f"{'.'.join(path)[:80] or 'body'}: {said}.")


def _unknown(model: type[BaseModel], path: list[str]) -> str:
    if path[0] in by_name(model) and not path[1:]:
        return "is given under two names"
    return f"there is no such field; the nearest is {nearest(model, path)}"


def implied_preset(steps: int | None) -> str | None:
    """The preset that callers of old mean by many steps: the model without a Lightning LoRA."""
    return "original" if steps is not None and steps >= 20 else None


class ResolvedEdit(Frozen):
    """An edit with every field decided, so that it can be repeated exactly.

    `scheduler` is `lightning` where a Lightning LoRA is in use, else the model's own.
    """

    model: str
    preset: str | None = None
    prompt: str
    negative_prompt: str = " "
    images: tuple[ImageRef, ...]
    mask: ImageRef | None = None
    steps: int
    true_cfg_scale: float
    seed: int
    size: str = "match"
    n: int = 1
    tier: Tier = "standard"
    loras: tuple[LoraRef, ...] = ()
    scheduler: Literal["base", "lightning"] = "base"
    output: ResolvedOutput = ResolvedOutput()
    priority: int = 0

    def files(self) -> list[tuple[str, ImageRef]]:
        """File name in the job's folder and picture of every input, the mask last."""
        named = [(f"input-{n}", picture) for n, picture in enumerate(self.images, start=1)]
        if self.mask:
            named.append(("mask", self.mask))
        return [(f"{stem}.{SUFFIXES[picture.type]}", picture) for stem, picture in named]


class Notice(Frozen):
    """A warning that goes with a job or an answer; codes as in `errors.WARNINGS`."""

    code: str
    message: str


def notice(code: str) -> Notice:
    """The warning of `code` with its standard text."""
    return Notice(code=code, message=errors.WARNINGS[code])


class ErrorInfo(Frozen):
    """A failed job's error."""

    code: str
    message: str
    retryable: bool = False


class Result(Frozen):
    """One finished picture of a job; `n` counts from 1."""

    n: int
    type: str
    bytes: int
    sha256: str
    width: int
    height: int
    seed: int

    @property
    def file(self) -> str:
        """Its file's name in the job's folder."""
        return f"result-{self.n}.{SUFFIXES[self.type]}"


SUFFIXES = {
    "image/png": "png",
    "image/jpeg": "jpg",
    "image/webp": "webp",
    "image/tiff": "tif",
    "image/avif": "avif",
    "image/bmp": "bmp",
    "image/heif": "heic",
}
"""File ending by media type, for every format that vellumd reads or writes."""


class JobStatus(enum.StrEnum):
    """`queued → running → done | failed | cancelled`; the last three absorb."""

    QUEUED = "queued"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def terminal(self) -> bool:
        """Whether the job has ended for good."""
        return self in (JobStatus.DONE, JobStatus.FAILED, JobStatus.CANCELLED)


class Progress(Frozen):
    """How far a running job is: image k of n, step k of n; `eta_s` seconds are left."""

    phase: str
    image: int = 0
    images: int = 0
    step: int = 0
    steps: int = 0
    eta_s: float | None = None


class Job(Frozen):
    """A job as every door shows it."""

    id: str
    status: JobStatus
    model: str
    source: str
    client_id: str | None = None
    batch: str | None = None
    created: Moment
    started: Moment | None = None
    ended: Moment | None = None
    position: int | None = Field(default=None, description="Jobs ahead of it, while queued.")
    eta_s: float | None = Field(default=None, description="Seconds until it ends, if known.")
    attempt: int = 0
    retry_of: str | None = None
    progress: Progress | None = None
    request: ResolvedEdit | None = Field(default=None, description="Null once expired.")
    results: tuple[Result, ...] = ()
    elapsed_s: float | None = Field(default=None, description="Seconds the engine worked.")
    warnings: tuple[Notice, ...] = ()
    error: ErrorInfo | None = None
    meta: JsonValue = None

    def public(self) -> dict[str, Any]:
        """The one JSON shape of a job, the same on every door."""
        return self.model_dump(mode="json")


EventType = Literal["queued", "started", "done", "failed", "cancelled", "step", "preview"]
ENDS = ("done", "failed", "cancelled")
"""Types of the event that ends a job: exactly one of them comes."""


class JobEvent(Frozen):
    """Something that happened to a job.

    Durable events carry the global `seq` they are replayed by; `step` and `preview` are
    live only, have none and are never replayed.
    """

    job_id: str
    type: EventType
    at: Moment
    seq: int | None = None
    data: dict[str, Any] = {}


class Delivery:
    """A finished job that a transport owes its sender, or follows.

    `reply` is what the transport gave at `submit` or `follow`: private and opaque. Exactly
    one of `delivered`, `retry` and `give_up` is awaited, once per delivery; each returns
    when its change is on disk. `attempts` counts the retries before this one, over restarts
    too, for those who wait longer each time.
    """

    def __init__(
        self,
        job: Job,
        reply: JsonValue,
        settle: Callable[[str, str | None, float], Awaitable[None]],
        attempts: int = 0,
    ) -> None:
        self.job = job
        self.reply: Any = reply
        self.attempts = attempts
        self._settle = settle

    async def delivered(self) -> None:
        """The sender has it."""
        await self._settle("delivered", None, 0)

    async def retry(self, after: float) -> None:
        """Offer it again in `after` seconds."""
        await self._settle("pending", None, after)

    async def give_up(self, code: str) -> None:
        """It cannot be delivered; `code` says why and stays with the job."""
        await self._settle("undeliverable", code, 0)
