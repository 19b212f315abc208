"""The engine as a Python object, for scripts without a daemon."""

from __future__ import annotations

import io
import tempfile
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from PIL import Image
from pydantic import ValidationError

from vellumd import errors, images, model_card, models, platform
from vellumd.engine import finish
from vellumd.engine.report import PipeReport
from vellumd.models import EditRequest, ImageRef, LoraRef, Progress
from vellumd.presets import Presets
from vellumd.protocol import Capabilities, Engine, FromEngine, Init, Step
from vellumd.settings import EngineSettings, Settings

FACTORY = "vellumd.engine.start:create"

PNG_MODES = ("1", "L", "LA", "I", "I;16", "P", "RGB", "RGBA")
"""Pillow's modes that a PNG can hold."""

Picture = str | Path | bytes | Image.Image
"""A picture as a script has it: a file, its bytes, or opened by Pillow."""


class QwenImageEditEngine:
    """Qwen-Image-Edit in this process.

        engine = QwenImageEditEngine("path/to/Qwen-Image-Edit-2511")
        engine.load()
        engine.generate(images=["in.png"], prompt="Make it night", seed=42).save("out.png")
        engine.unload()

    The same inputs and seed give the same picture as through the daemon. Not for use by
    several threads at once.
    """

    def __init__(self, model: str | Path | None = None, **settings: Any) -> None:
        """`model` is a model folder or file, or `demo`; `settings` are keys of `[engine]`.

        Raises `ModelMissing` without a model or for a folder that is not there, and
        `ConfigError` for an unknown or wrong setting.
        """
        if model is None:
            raise errors.ModelMissing("QwenImageEditEngine was given no model.")
        try:
            self._settings = Settings(engine=EngineSettings(model=str(model), **settings))
        except ValidationError as error:
            raise errors.ConfigError(models.bad_request(EngineSettings, error).message) from None
        self._presets = Presets(self._settings, model_card.of(self._settings.engine))
        self._engine: Engine | None = None

    def load(self) -> Capabilities:
        """Bring the weights up; raises `ModelInvalid` or `OutOfMemory`."""
        from vellumd.engine import start

        self.unload()
        engine = start.create(
            Init(
                engine=FACTORY,
                settings=self._settings.engine.model_dump(mode="json"),
                spool=Path(),
                cache=platform.cache_dir(),
            )
        )
        capabilities = engine.load(_report(None))
        self._engine = engine
        return capabilities

    def unload(self) -> None:
        """Let go of the weights and of the card's memory."""
        if self._engine is not None:
            self._engine.unload()
            self._engine = None

    def __enter__(self) -> QwenImageEditEngine:
        self.load()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.unload()

    def generate(
        self,
        images: Picture | Sequence[Picture],
        prompt: str,
        *,
        num_steps: int | None = None,
        true_cfg_scale: float | None = None,
        seed: int | None = None,
        negative_prompt: str | None = None,
        width: int | None = None,
        height: int | None = None,
        size: str | None = None,
        preset: str | None = None,
        n: int | None = None,
        loras: Sequence[LoraRef] | None = None,
        mask: Picture | None = None,
        alpha: str | None = None,
        callback: Callable[[Progress], None] | None = None,
    ) -> Any:
        """Edit `images` as `prompt` says; gives a Pillow image, for `n` > 1 a list of them.

        What is left out comes from `preset`; without one, 20 steps or more mean
        `original`, else it is the model's own default or `balanced`. `width` and `height` in
        pixels go together and stand for `size`. `mask` is white where the picture may
        change. `alpha` is `flatten` or `reapply`. `callback` is called after each step.
        Raises the errors of `vellumd.errors`; warnings come as Python warnings.
        """
        if self._engine is None:
            self.load()
        wanted = {
            "prompt": prompt,
            "negative_prompt": negative_prompt,
            "steps": num_steps,
            "true_cfg_scale": true_cfg_scale,
            "seed": seed,
            "size": _size(width, height, size),
            "preset": preset or models.implied_preset(num_steps),
            "n": n,
            "loras": loras,
            "output": {"alpha": alpha} if alpha else None,
        }
        several = images if isinstance(images, (list, tuple)) else [images]
        with tempfile.TemporaryDirectory(prefix="vellumd-") as folder:
            files = [_file(picture, Path(folder), f"{k}") for k, picture in enumerate(several)]
            cut = None if mask is None else _file(mask, Path(folder), "mask")
            request = EditRequest.parse(
                {
                    **wanted,
                    "images": [self._ref(file) for file in files],
                    "mask": None if cut is None else self._ref(cut),
                }
            )
            pictures = self._run(request, files, cut, callback)
        return pictures if request.n and request.n > 1 else pictures[0]

    def _run(
        self,
        request: EditRequest,
        files: list[Path],
        mask: Path | None,
        callback: Callable[[Progress], None] | None,
    ) -> list[Image.Image]:
        """The way of a job through the worker, without its files."""
        assert self._engine is not None
        edit, notices = self._presets.resolve(request)
        inputs = finish.decode(files, mask, self._settings.limits)
        report = _report(callback)
        for code in (*(notice.code for notice in notices), *finish.warnings(edit, inputs)):
            report.warn(code)
        painted = self._engine.edit(edit, files, report, lambda: False)
        pictures = [finish.finish(picture, edit, inputs) for picture in painted]
        for code in report.warnings:
            warnings.warn(errors.WARNINGS[code], stacklevel=3)
        return pictures

    def _ref(self, file: Path) -> ImageRef:
        header = images.inspect(file, self._settings.limits)
        digest = images.sha256_of(file)
        return ImageRef(sha256=digest, width=header.width, height=header.height, type=header.type)


def _report(callback: Callable[[Progress], None] | None) -> PipeReport:
    """A report of which only the steps are told, to `callback`."""

    def send(frame: FromEngine) -> None:
        if callback is not None and isinstance(frame, Step):
            callback(frame.progress)

    return PipeReport(send, preview=lambda: False)


def _size(width: int | None, height: int | None, size: str | None) -> str | None:
    if width is None and height is None:
        return size
    if width is None or height is None or size is not None:
        raise errors.BadSize("Give width and height together, or size.")
    return f"{width}x{height}"


def _file(picture: Picture, folder: Path, name: str) -> Path:
    """`picture` as a file; what is none yet is written into `folder`."""
    if isinstance(picture, (str, Path)):
        return Path(picture)
    target = folder / name
    if isinstance(picture, Image.Image):
        buffer = io.BytesIO()
        (picture if picture.mode in PNG_MODES else picture.convert("RGB")).save(buffer, "PNG")
        picture = buffer.getvalue()
    target.write_bytes(picture)
    return target
