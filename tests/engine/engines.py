"""Torch-free engines for tests of the worker; what an edit does is told by its prompt."""

from __future__ import annotations

import ctypes
import errno
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from PIL import Image

from vellumd import errors, platform
from vellumd.models import ResolvedEdit, UsedLora
from vellumd.protocol import Capabilities, Init, Report


class Plain:
    """Paints pictures in one colour, or misbehaves."""

    def load(self, report: Report) -> Capabilities:
        for number in range(500):
            report.beat("load", number, 500)
        return Capabilities(model="plain", device="cpu", notes=tuple(_torch()))

    def edit(
        self,
        edit: ResolvedEdit,
        images: list[Path],
        report: Report,
        cancelled: Callable[[], bool],
    ) -> Iterator[Image.Image]:
        report.beat("denoise")
        getattr(self, f"_{edit.prompt.split()[0]}", lambda *_: None)(report, cancelled)
        for number in range(edit.n):
            report.step(number + 1, edit.n, 1, 1)
            yield self._picture(edit.prompt, number)

    def unload(self) -> None:
        pass

    def _picture(self, prompt: str, number: int) -> Image.Image:
        if prompt == "nan":
            picture = Image.new("F", (64, 48), 100.0)
            picture.putpixel((7, 7), float("nan"))
            return picture
        return Image.new(
            "RGB", (64, 48), (0, 0, 0) if prompt == "black" else (200, 40 * number, 90)
        )

    def _loras(self, report: Report, _: object) -> None:
        report.used([UsedLora(name="style", scale=0.5, file="style.safetensors", sha256="0" * 64),
                     UsedLora(name="inside")])  # fmt: skip

    def _memory(self, report: Report, _: object) -> None:
        import torch

        report.warn("memory_freed")
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")

    def _driver(self, *_: object) -> None:
        raise RuntimeError("CUDA error: out of memory")

    def _host(self, *_: object) -> None:
        raise MemoryError

    def _processor(self, *_: object) -> None:
        import torch

        torch.empty(1 << 60)

    def _handle(self, *_: object) -> None:
        raise RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate`")

    def _print(self, *_: object) -> None:
        print("a stray print", flush=True)
        libc = ctypes.CDLL(None)
        libc.puts(b"a stray puts")
        libc.fflush(None)

    def _fail(self, *_: object) -> None:
        raise KeyError("/secret/path")

    def _sticky(self, *_: object) -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    def _wait(self, report: Report, cancelled: Callable[[], bool]) -> None:
        while not cancelled():
            report.beat("denoise")
            time.sleep(0.01)
        raise errors.Cancelled("The job was cancelled.")

    def _hang(self, *_: object) -> None:
        threading.Event().wait()

    def _large(self, report: Report, _: object) -> None:
        noise = Image.effect_noise((2000, 2000), 100)
        report.preview(noise)
        report.preview(noise.resize((64, 64)))

    def _full(self, *_: object) -> None:
        fill_disk("result-1.png")

    def _unclosed(self, *_: object) -> None:
        fill_disk("result.json")

    def _scratch(self, *_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "/secret/path")


class Warming(Plain):
    """Warms up as the setting `warm` says: `short`, `long`, or until something breaks."""

    def __init__(self, init: Init) -> None:
        self._warm = init.settings["warm"]

    def load(self, report: Report) -> Capabilities:
        return super().load(report).model_copy(update={"warms_up": True})

    def warm_up(self, report: Report, cancelled: Callable[[], bool]) -> None:
        report.beat("compile")
        if self._warm == "long":
            self._wait(report, cancelled)
        elif self._warm == "fail":
            raise KeyError("/secret/path")
        elif self._warm == "sticky":
            self._sticky()


def fill_disk(name: str) -> None:
    """Have the next result file of this name find no room."""
    store = platform.replace_durably

    def replace_durably(path: Path, data: bytes) -> None:
        if path.name == name:
            platform.replace_durably = store
            raise OSError(errno.ENOSPC, "No space left on device")
        store(path, data)

    platform.replace_durably = replace_durably


def _torch() -> Iterator[str]:
    """Heavy modules that are loaded in this process."""
    heavy = ("torch", "numpy", "diffusers", "transformers")
    return (name for name in heavy if name in sys.modules)


def create(init: Init) -> Plain:
    return Plain()


def warming(init: Init) -> Warming:
    return Warming(init)


def missing(init: Init) -> Plain:
    raise errors.ModelMissing("There is no model folder 'x'.")


def broken(init: Init) -> Plain:
    raise ZeroDivisionError("/secret/path")
