"""A model's files to loaded components."""

# diffusers and transformers annotate in part only.
# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import accelerate
import diffusers
import torch
import transformers

from vellumd import errors
from vellumd.engine import precision, weights
from vellumd.engine.precision import Recipe
from vellumd.engine.reading import Reader
from vellumd.engine.vae import flatten, last_taps
from vellumd.weights.model import Model, open_model

log = logging.getLogger(__name__)

Beat = Callable[[str, int, int], None]
MIB = 1 << 20
GB = 10**9


@dataclass(frozen=True)
class Parts:
    """The components of Qwen-Image-Edit, on one device, ready to run."""

    transformer: Any
    text_encoder: Any
    vae: Any
    processor: Any
    scheduler: dict[str, Any]
    device: torch.device
    dtype: torch.dtype
    model: Model
    read: Read

    def encoder_blocks(self) -> list[torch.nn.Module]:
        """The text encoder's transformer blocks, those of its vision tower first."""
        encoder = self.text_encoder.model
        return [*encoder.visual.blocks, *encoder.language_model.layers]

    def blocks(self) -> list[torch.nn.Module]:
        """Every transformer block that an edit runs through."""
        return [*self.encoder_blocks(), *self.transformer.transformer_blocks]


@dataclass
class Read:
    """What was read so far, told to `beat` as MiB of the whole."""

    beat: Beat
    total: int
    done: int = 0
    seconds: float = 0

    def __post_init__(self) -> None:
        self._began = time.perf_counter()

    def __call__(self, size: int) -> None:
        """`size` more bytes are there."""
        self.done += size
        self.seconds = time.perf_counter() - self._began
        self.beat("load", self.done // MIB, self.total // MIB)

    def __str__(self) -> str:
        rate = self.done / GB / self.seconds if self.seconds else 0
        return f"{self.done / GB:.1f} GB of weights in {self.seconds:.1f} s, {rate:.1f} GB/s"


def device_of(wanted: str) -> torch.device:
    """The device `wanted`: `auto` and the number of a GPU mean the CPU where there is none."""
    if wanted != "auto" and not wanted.isdecimal():
        return torch.device(wanted)
    if torch.cuda.is_available():
        return torch.device("cuda", 0 if wanted == "auto" else int(wanted))
    return torch.device("cpu")


def load(
    source: Path | Model,
    device: torch.device,
    beat: Beat,
    recipe: Recipe = precision.PLAIN,
    keep: Iterable[str] = (),
) -> Parts:
    """Load a model, a folder in diffusers layout or one opened before.

    bfloat16 on a GPU, float32 on a CPU; the transformer as `recipe` says, without the
    linears whose names end in one of `keep`. `beat` is told what is read as MiB of the whole.
    Raises `ModelInvalid` naming the part that is missing, damaged or of another kind, and
    `OutOfMemory`.
    """
    model = source if isinstance(source, Model) else open_model(source)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    with _part("processor"):
        processor = transformers.Qwen2VLProcessor.from_pretrained(
            model.base / "processor", local_files_only=True
        )
    with _part("scheduler"):
        scheduler = diffusers.FlowMatchEulerDiscreteScheduler.load_config(model.base / "scheduler")
    read = Read(beat, model.nbytes)
    with Reader(device, read) as reader:
        with _part("text_encoder"):
            text_encoder = _text_encoder(model)
            weights.fill(text_encoder, model.text_encoder, reader, weights.dense(dtype))
        with _part("vae"):
            vae = _empty(diffusers.AutoencoderKLQwenImage, model.configs["vae"])
            adapt = last_taps(vae)
            weights.check(flatten(vae), model.vae, adapt)
            weights.fill(vae, model.vae, reader, weights.dense(dtype, adapt))
        with _part("transformer"):
            transformer = _empty(
                diffusers.QwenImageTransformer2DModel, model.configs["transformer"]
            )
            fit = precision.fitting(transformer, recipe, dtype, keep)
            weights.fill(transformer, model.transformer, reader, fit)
    log.info("loaded %s", read)
    for module in (transformer, text_encoder, vae):
        module.to(device).eval().requires_grad_(False)
    return Parts(
        transformer, text_encoder, vae, processor, dict(scheduler), device, dtype, model, read
    )


def _empty(kind: Any, config: dict[str, Any]) -> Any:
    """The model of `config` without weights.

    Only parameters are left out: the RoPE tables are plain tensors and must be real.
    """
    with accelerate.init_empty_weights(include_buffers=False):
        return kind.from_config(config)


def _text_encoder(model: Model) -> Any:
    """Qwen2.5-VL without weights, and without its head, which no edit uses."""
    config = transformers.Qwen2_5_VLConfig.from_dict(model.configs["text_encoder"])
    with accelerate.init_empty_weights(include_buffers=False):
        encoder: Any = transformers.Qwen2_5_VLForConditionalGeneration(config)
    encoder.lm_head = torch.nn.Identity()
    return encoder


@contextlib.contextmanager
def _part(name: str) -> Iterator[None]:
    """Turn whatever a damaged part makes its loader raise into `ModelInvalid`."""
    full = False
    try:
        yield
    except (errors.VellumError, torch.AcceleratorError):
        raise
    except torch.OutOfMemoryError:
        full = True
    except Exception:
        log.exception("loading the model's %s failed", name)
        raise errors.ModelInvalid(f"The model's {name} cannot be loaded.") from None
    if full:
        raise errors.OutOfMemory("The model does not fit in the card's memory.")
