"""One tree of errors, one stable code each, the same on every door.

An error says what was wrong (`message`) and what to do (`remedy`). Its text never
carries a path, another job's data or the text of an exception: those go to the log.
The table in docs/errors.md is generated from `ALL`.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager


class VellumError(Exception):
    """Base of every error a user can meet.

    `code` is the stable name, `status` the HTTP status it is answered with,
    `retryable` whether the same request can succeed later, `remedy` what to do.
    """

    code = "internal"
    status = 500
    retryable = False
    remedy = "Try again; if it happens again, read the daemon's log."

    def __init__(self, message: str, *, retry_after: float | None = None) -> None:
        """`retry_after`: seconds after which a retry makes sense, where known."""
        super().__init__(message)
        self.message = message
        self.retry_after = retry_after

    def public(self) -> dict[str, object]:
        """The JSON form of the error that every door shows."""
        return {
            "code": self.code,
            "message": f"{self.message} {self.remedy}",
            "retryable": self.retryable,
        }


class Internal(VellumError):
    """Something broke that is not the sender's fault."""


class BadRequest(VellumError):
    """A field is missing, unknown, of the wrong type or out of range."""

    code, status = "bad_request", 400
    remedy = "Correct the field named here and send it again."


class BadImage(VellumError):
    """The bytes are not a whole picture."""

    code, status = "bad_image", 400
    remedy = "Send a whole PNG, JPEG, WebP, TIFF, AVIF or BMP picture of at least 16x16 pixels."


class TooManyImages(VellumError):
    """One edit has more reference pictures than the limit, or none."""

    code, status = "too_many_images", 400
    remedy = "Send as many pictures as limits.max_images allows (see /v1/capabilities)."


class UnsupportedFormat(VellumError):
    """The picture is of a format that vellumd does not open."""

    code, status = "unsupported_format", 400
    remedy = "Convert it to PNG, JPEG, WebP, TIFF, AVIF or BMP."


class BadSize(VellumError):
    """The wanted output size is not one that can be made."""

    code, status = "bad_size", 400
    remedy = 'Use "match", "auto", "fit:MEGAPIXELS" or "WIDTHxHEIGHT".'


class UnknownPreset(VellumError):
    """No preset has that name."""

    code, status = "unknown_preset", 400
    remedy = "Use one of those that /v1/presets lists, or save one there or as [presets.NAME]."


class UnknownLora(VellumError):
    """The LoRA is neither configured nor in the model's loras folder, or cannot be added."""

    code, status = "unknown_lora", 400
    remedy = "Use one that /v1/capabilities lists, or name its file in [engine.loras]."


class UnknownTier(VellumError):
    """No precision tier has that name, or it is not open to requests."""

    code, status = "unknown_tier", 400
    remedy = "Use standard, swift or turbo; reference is chosen by engine.tier at start."


class Unauthorized(VellumError):
    """The request needs a key."""

    code, status = "unauthorized", 401
    remedy = "Send the key as `Authorization: Bearer KEY`."


class ForbiddenHost(VellumError):
    """The Host header names a machine that this daemon does not answer for."""

    code, status = "forbidden_host", 403
    remedy = "Use the machine's address, or add the name to plugins.http.allowed_hosts."


class ForbiddenOrigin(VellumError):
    """A page of another site tried to change something."""

    code, status = "forbidden_origin", 403
    remedy = "Open the page from this daemon, or add its origin to plugins.http.allowed_origins."


class PresetFixed(VellumError):
    """The preset ships with vellumd or stands in its configuration, or the latter needs it."""

    code, status = "preset_fixed", 403
    remedy = "Save it under another name, or change the configuration and start again."


class NotFound(VellumError):
    """Nothing is known under that id or path."""

    code, status = "not_found", 404
    remedy = "Check id or address; what is no longer kept has to be sent again."


class BodyTimeout(VellumError):
    """The request's body came too slowly."""

    code, status = "body_timeout", 408
    remedy = "Send the body at 64 KiB in 30 seconds or faster, within 300 seconds in all."


class NotDone(VellumError):
    """The job has not ended the way this call needs."""

    code, status = "not_done", 409
    remedy = "Wait for it with `Prefer: wait=60`, or follow its events."


class PresetsFull(VellumError):
    """As many presets are saved as are kept, or as large ones."""

    code, status = "presets_full", 409
    remedy = "Delete one that nobody uses, then save it again."


class Cancelled(VellumError):
    """The job was cancelled, so there is no result."""

    code, status = "cancelled", 409
    remedy = "Send it again if you still want it."


class Expired(VellumError):
    """The job was known, but its pictures are no longer kept, or were damaged."""

    code, status = "expired", 410
    remedy = "Send it again."


class ImageTooLarge(VellumError):
    """The picture has more pixels than the limit."""

    code, status = "image_too_large", 413
    remedy = "Reduce it below limits.max_pixels and limits.max_side."


class PayloadTooLarge(VellumError):
    """The request's body is larger than the limit."""

    code, status = "payload_too_large", 413
    remedy = "Send the pictures as multipart, smaller, or fewer of them."


class IdempotencyMismatch(VellumError):
    """The idempotency key was used before for a different request."""

    code, status = "idempotency_mismatch", 422
    remedy = "Use a new key for a new request."


class QueueFull(VellumError):
    """As many jobs wait as limits.queue allows."""

    code, status, retryable = "queue_full", 429, True
    remedy = "Send it again later."


class OutOfMemory(VellumError):
    """The edit does not fit in the memory of the card or the machine."""

    code = "out_of_memory"
    remedy = "Use fewer or smaller pictures, or a smaller size such as fit:0.5."


class EngineCrashed(VellumError):
    """The engine process died twice during this job."""

    code = "engine_crashed"
    remedy = "Read the daemon's log; the same input may crash it again."


class BadOutput(VellumError):
    """The engine made a black picture or not-a-number values."""

    code = "bad_output"
    remedy = "Try another seed or preset; if all fail, check the weights with `vellumd doctor`."


class EngineUnavailable(VellumError):
    """The engine is not loaded, or is restarting."""

    code, status, retryable = "engine_unavailable", 503, True
    remedy = "The job is kept if it was accepted; ask again later, /readyz says why."


class ModelMissing(VellumError):
    """No model is configured, or it or a part of it is not there."""

    code, status = "model_missing", 503
    remedy = "Set engine.model to a model folder or file, or to demo."


class ModelInvalid(VellumError):
    """The model's files are damaged, incomplete or of another kind."""

    code, status = "model_invalid", 503
    remedy = "Check the download and [engine]; `vellumd doctor` tells more."


class RecipeUnsupported(VellumError):
    """The recipe that engine.recipe names does not run on this machine."""

    code, status = "recipe_unsupported", 503
    remedy = "Set engine.recipe to auto; the daemon's log says what the recipe lacks."


class Timeout(VellumError):
    """The wait ended before the job did; the job goes on."""

    code, status, retryable = "timeout", 504, True
    remedy = "Ask for the job again by its id."


class StorageFull(VellumError):
    """The disk has no room."""

    code, status, retryable = "storage_full", 507, True
    remedy = "Free disk space, delete ended jobs (`vellumd jobs delete`), or send it later."


class ResultTooLarge(VellumError):
    """The result does not fit through the door it should leave by."""

    code = "result_too_large"
    remedy = "Allow more bytes, ask for jpeg, or a smaller size."


class ConfigError(VellumError):
    """The configuration is wrong; the program ends with exit code 78."""

    code = "config"
    remedy = "Correct it and start again; `vellumd serve --help` lists the keys."

    def public(self) -> dict[str, object]:
        """As for all, without a remedy where the message already holds one."""
        return {"code": self.code, "message": self.message, "retryable": False}


ALL: tuple[type[VellumError], ...] = (
    BadRequest, BadImage, TooManyImages, UnsupportedFormat, BadSize, UnknownPreset, UnknownLora,
    UnknownTier, Unauthorized, ForbiddenHost, ForbiddenOrigin, PresetFixed, NotFound,
    BodyTimeout, NotDone, PresetsFull, Cancelled, Expired, ImageTooLarge, PayloadTooLarge,
    IdempotencyMismatch, QueueFull, OutOfMemory, EngineCrashed, BadOutput, Internal,
    EngineUnavailable, ModelMissing, ModelInvalid, RecipeUnsupported, Timeout, StorageFull,
    ResultTooLarge,
)  # fmt: skip
"""Every error that can leave by a door, in the order of its HTTP status."""

BY_CODE: dict[str, type[VellumError]] = {error.code: error for error in ALL}


def from_code(code: str, message: str) -> VellumError:
    """The error of a stored or transmitted code; `internal` for one unknown here.

    The message may be a public one, which ends with the remedy: it is not told twice.
    """
    kind = BY_CODE.get(code, Internal)
    return kind(message.removesuffix(f" {kind.remedy}"))


def disk_error(error: OSError) -> VellumError:
    """What to tell a sender of whom something could not be written."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return StorageFull("The disk with the pictures is full.")
    if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
        return EngineUnavailable("The folder of the pictures cannot be written.")
    return Internal("The picture could not be stored.")


@contextmanager
def about(field: str) -> Iterator[None]:
    """Let what is wrong with a picture, or unknown under its hash, say which one it is."""
    try:
        yield
    except (BadImage, UnsupportedFormat, ImageTooLarge, NotFound) as error:
        raise type(error)(f"{field}: {error.message}") from None


WARNINGS: dict[str, str] = {
    "demo_model": "The embedded demo model made this picture, not a real model.",
    "enlarged": "The picture was enlarged by more than 1.5 times per side.",
    "reencoded": "The result was re-encoded to fit through this door.",
    "alpha_flattened": "Transparency was flattened on white.",
    "many_images": "With more than three pictures the model's order is weak.",
    "tier_lowered": "This machine cannot run the wanted tier; a slower exact one ran.",
    "prompt_cut": "The prompt was longer than the encoder reads and was cut.",
    "lora_fused": "The model's weights hold a Lightning LoRA, which cannot be switched off.",
    "lora_ignored": "The LoRA was not applied.",
    "store_rebuilt": "The job store was damaged and was made again from the jobs' folders.",
    "memory_freed": "Memory ran out; part of the edit was done twice.",
    "vae_tiled": "Memory ran out; the picture was made in tiles and may show seams.",
    "weights_streamed": "Memory ran out; the weights came from the host, which is slower.",
    "kernel_replaced": "A kernel of the card failed; plain PyTorch did its work, which is slower: "
    "the engine's log says why.",
    "engine_cold": "The engine had not warmed up yet: this edit took longer than the next ones.",
    "unknown_field": "A field was not understood and was ignored.",
}
"""Warnings that a job or an answer can carry, code to text."""
