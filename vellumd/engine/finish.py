"""What happens to pictures before and after the engine: decode, check, paste, write."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

import vellumd
from vellumd import errors, images, platform
from vellumd.engine.faults import storing
from vellumd.models import ResolvedEdit, Result, UsedLora, notice
from vellumd.settings import Limits

RESULT_FILE = "result.json"
THREADS = 4
"""Inputs that are decoded at the same time."""


@dataclass(frozen=True)
class Inputs:
    """What is kept of an edit's decoded inputs: image 1, which results are made to fit.

    `transparent` tells of each picture whether it has an alpha.
    """

    first: images.Picture
    transparent: Sequence[bool]
    mask: Image.Image | None


def input_files(folder: Path, edit: ResolvedEdit) -> tuple[list[Path], Path | None]:
    """Where the pictures and the mask of `edit` lie in its job's `folder`."""
    files = [folder / name for name, _ in edit.files()]
    return files[: len(edit.images)], files[-1] if edit.mask else None


def check(folder: Path, edit: ResolvedEdit) -> None:
    """Raises `Expired` where an input in the job's `folder` is not the file that came in.

    One that changed on the disk may still decode, and would be edited as if it had been sent.
    """
    fields = [*(f"images.{n}" for n in range(len(edit.images))), "mask"]
    for field, (name, picture) in zip(fields, edit.files(), strict=False):
        if images.sha256_of(folder / name) != picture.sha256:
            raise errors.Expired(f"{field}: the picture was damaged on the disk.")


def decode(files: Sequence[Path], mask: Path | None, limits: Limits) -> Inputs:
    """Decode all inputs to the last pixel, so that no GPU time goes to a broken one.

    The first that is broken ends it.
    """
    first, transparent = None, []
    with ThreadPoolExecutor(THREADS) as threads:  # Pillow decodes without the GIL
        loading = threads.map(lambda file: images.load(file, limits), files)
        for n in range(len(files)):
            with errors.about(f"images.{n}"):
                picture = next(loading)
            first = first or picture
            transparent.append(picture.alpha is not None)
    assert first is not None
    with errors.about("mask"):
        shape = images.load_mask(mask, first.image.size, limits) if mask else None
    return Inputs(first, transparent, shape)


def warnings(edit: ResolvedEdit, inputs: Inputs) -> list[str]:
    """Codes of the warnings that follow from the inputs."""
    kept = 1 if edit.output.alpha == "reapply" else 0
    found = []
    if any(inputs.transparent[kept:]):
        found.append("alpha_flattened")
    if len(inputs.transparent) > 3:
        found.append("many_images")
    return found


def finish(picture: Image.Image, edit: ResolvedEdit, inputs: Inputs) -> Image.Image:
    """The result as it leaves: checked, pasted into the original, its alpha back.

    Raises `BadOutput` for a black picture.
    """
    images.check_output(picture)
    first = inputs.first
    kept = first.alpha if edit.output.alpha == "reapply" else None
    if inputs.mask is not None:
        original = first.flat if kept is None else first.image
        picture = images.paste_back(original, picture, inputs.mask)
    return picture if kept is None else images.reapply_alpha(picture, kept)


class Results:
    """The results of one job, written into its folder so that any crash is harmless.

    `result.json` comes last: a folder that has it is whole, one that has not is
    overwritten by the next attempt. Whatever finds no room raises `faults.UnstoredError`.
    """

    def __init__(self, folder: Path, job: str, edit: ResolvedEdit, inputs: Inputs) -> None:
        self._folder = folder
        self._job = job
        self._edit = edit
        self._inputs = inputs
        self.written: list[Result] = []
        with storing():
            self._sweep()

    def _sweep(self) -> None:
        """Remove what an earlier attempt left, `result.json` before what it speaks of."""
        (self._folder / RESULT_FILE).unlink(missing_ok=True)
        for pattern in ("result-*", ".*.tmp"):
            for leftover in self._folder.glob(pattern):
                leftover.unlink()

    def write(self, picture: Image.Image, loras: Sequence[UsedLora] = ()) -> None:
        """Finish, encode and write the next result, made with `loras`; durable on return."""
        n = len(self.written) + 1
        picture = finish(picture, self._edit, self._inputs)
        seed = self._edit.seed + n - 1
        data, media_type = images.encode(
            picture, self._edit.output, self._inputs.first, self._facts(seed, loras)
        )
        result = Result(
            n=n,
            type=media_type,
            bytes=len(data),
            sha256=hashlib.sha256(data).hexdigest(),
            width=picture.width,
            height=picture.height,
            seed=seed,
        )
        with storing():
            platform.replace_durably(self._folder / result.file, data)
        self.written.append(result)

    def _facts(self, seed: int, loras: Sequence[UsedLora]) -> dict[str, Any]:
        """What a result file tells about how it was made."""
        fields = ("model", "preset", "prompt", "negative_prompt", "steps", "true_cfg_scale",
                  "size", "tier", "loras", "scheduler")  # fmt: skip
        edit = self._edit.model_dump(mode="json", include=set(fields))
        facts = {"version": vellumd.__version__, "job": self._job, "seed": seed, **edit}
        return {**facts, "loras": _dumped(loras)} if loras else facts

    def close(
        self,
        elapsed_s: float,
        timings: dict[str, float],
        codes: Sequence[str],
        loras: Sequence[UsedLora] = (),
    ) -> None:
        """Write `result.json`: from here on the job needs no GPU again."""
        body = {
            "results": [result.model_dump(mode="json") for result in self.written],
            "elapsed_s": elapsed_s,
            "timings": timings,
            "warnings": [notice(code).model_dump(mode="json") for code in codes],
            "loras": _dumped(loras),
        }
        with storing():
            platform.replace_durably(self._folder / RESULT_FILE, json.dumps(body).encode())


def _dumped(loras: Sequence[UsedLora]) -> list[dict[str, Any]]:
    return [lora.model_dump(mode="json", exclude_none=True) for lora in loras]
