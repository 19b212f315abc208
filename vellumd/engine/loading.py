"""A model's files to loaded components."""

# diffusers and transformers annotate in part only.
# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import accelerate
import diffusers
import torch
import transformers

from vellumd import artefact, errors
from vellumd.artefact import Artefact
from vellumd.engine import precision, qwen_vl, weights
from vellumd.engine.faults import is_memory
from vellumd.engine.placing import Placed, Placing, is_as_held
from vellumd.engine.precision import Recipe
from vellumd.engine.reading import Reader
from vellumd.engine.tables import Tables, in_checkpoint, in_file
from vellumd.engine.vae import flatten, last_taps
from vellumd.memory_plan import Plan
from vellumd.weights import checkpoint, header
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
    ready: Artefact | None = None
    """The artefact that the transformer came from."""
    table: Tables | None = None
    """What stands for the transformer's modulation, where its weights were left out."""
    placed: Placed = field(default_factory=Placed)
    """What moves while edits run."""

    def encoder_blocks(self) -> list[torch.nn.Module]:
        """The text encoder's transformer blocks, those of its vision tower first."""
        encoder = self.text_encoder.model
        return [*encoder.visual.blocks, *encoder.language_model.layers]


@dataclass
class Read:
    """What was read so far, told to `beat` as MiB of the whole."""

    beat: Beat
    total: int
    done: int = 0
    seconds: float = 0
    phase: str = "load"
    parts: dict[str, float] = field(default_factory=dict)
    """Seconds by part, with what is done to it beside reading."""

    def __post_init__(self) -> None:
        self._began = time.perf_counter()

    def __call__(self, size: int) -> None:
        """`size` more bytes are there."""
        self.done += size
        self.seconds = time.perf_counter() - self._began
        self.beat(self.phase, self.done // MIB, self.total // MIB)

    def __str__(self) -> str:
        rate = self.done / GB / self.seconds if self.seconds else 0
        read = f"{self.done / GB:.3g} GB of weights in {self.seconds:.1f} s, {rate:.1f} GB/s"
        parts = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in self.parts.items())
        return f"{read} ({parts})" if parts else read


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
    ready: Artefact | None = None,
    plan: Plan | None = None,
    dtype: torch.dtype | None = None,
) -> Parts:
    """Load a model, a folder in diffusers layout or one opened before.

    bfloat16 on a GPU, float32 on a CPU, unless `dtype` says otherwise; the transformer as
    `recipe` says, without the linears whose names end in one of `keep`, and out of the
    artefact `ready` if there is one. Everything lies where `plan` says, on the device if
    left out. `beat` is told what is read as MiB of the whole.

    Raises `ModelInvalid` naming the part that is missing, damaged or of another kind, and
    `OutOfMemory`.
    """
    model = source if isinstance(source, Model) else open_model(source)
    dtype = dtype or (torch.bfloat16 if device.type == "cuda" else torch.float32)
    with _part("processor"):
        processor = transformers.Qwen2VLProcessor.from_pretrained(
            model.base / "processor", local_files_only=True
        )
    with _part("scheduler"):
        scheduler = diffusers.FlowMatchEulerDiscreteScheduler.load_config(model.base / "scheduler")
    size = sum(part.nbytes for part in (model.text_encoder, model.vae))
    read = Read(beat, size + _transformer_size(model, ready))
    placed = Placed()
    placing = _placing(plan, device, model, ready, dtype, placed, read)
    with Reader(device, read) as reader, placing:
        with _part("text_encoder", read):
            text_encoder = _text_encoder(model)
            typed(text_encoder, dtype)
            fit = placing.encoder_fit(text_encoder, weights.dense(dtype))
            weights.fill(text_encoder, model.text_encoder, reader, fit, placing.skips)
            placing.encoder(text_encoder, model.text_encoder)
        with _part("vae", read):
            vae = empty(diffusers.AutoencoderKLQwenImage, model.configs["vae"])
            adapt = last_taps(vae)
            weights.check(flatten(vae), model.vae, adapt)
            weights.fill(vae, model.vae, reader, weights.dense(dtype, adapt))
        transformer, table = _transformer(model, reader, dtype, recipe, keep, ready, placing, read)
    log.info("loaded %s", read)
    vae.to(device)
    for module in (transformer, text_encoder, vae):
        module.eval().requires_grad_(False)
    return Parts(
        transformer, text_encoder, vae, processor, dict(scheduler), device, dtype, model, read,
        ready, table, placed,
    )  # fmt: skip


def _placing(
    plan: Plan | None,
    device: torch.device,
    model: Model,
    ready: Artefact | None,
    dtype: torch.dtype,
    placed: Placed,
    read: Read,
) -> Placing:
    plan = plan or Plan(tabled=ready is not None)
    half = dtype is torch.bfloat16
    return Placing(
        plan,
        device,
        int(model.configs["transformer"]["num_layers"]),
        placed,
        transformer_as_held=half and ready is not None,
        encoder_as_held=half and is_as_held(model.text_encoder),
        read=read,
    )


def typed(module: torch.nn.Module, dtype: torch.dtype) -> None:
    """Parameters that are still on meta get the type that they will have.

    FP8 weights and their scales have it already.
    """
    for name, parameter in module.named_parameters():
        if parameter.is_meta and parameter.element_size() > 1 and not name.endswith(".scale"):
            parameter.data = torch.empty_like(parameter, dtype=dtype)


def exchange(
    parts: Parts,
    beat: Beat,
    recipe: Recipe,
    keep: Iterable[str],
    ready: Artefact | None,
    plan: Plan | None = None,
) -> Parts:
    """The same parts with a transformer out of another artefact, or out of the model.

    The old transformer must be held by nobody else: its memory is wanted for the new one.
    """
    read = Read(beat, _transformer_size(parts.model, ready), phase="swap")
    placed = replace(parts.placed, blocks=None)
    placing = _placing(plan, parts.device, parts.model, ready, parts.dtype, placed, read)
    with Reader(parts.device, read) as reader, placing:
        transformer, table = _transformer(
            parts.model, reader, parts.dtype, recipe, keep, ready, placing, read
        )
    log.info("exchanged the transformer: %s", read)
    transformer.eval().requires_grad_(False)
    return replace(
        parts, transformer=transformer, read=read, ready=ready, table=table, placed=placed
    )


def _transformer_size(model: Model, ready: Artefact | None) -> int:
    if ready is None:
        return model.transformer.nbytes
    return sum(
        shard.size
        for name, shard in ready.manifest.files.items()
        if name.startswith(artefact.TRANSFORMER)
    )


def _transformer(
    model: Model,
    reader: Reader,
    dtype: torch.dtype,
    recipe: Recipe,
    keep: Iterable[str],
    ready: Artefact | None,
    placing: Placing,
    read: Read,
) -> tuple[Any, Tables | None]:
    """The transformer as `recipe` says, and the table that stands for its modulation, if any."""
    with _part("transformer", read):
        transformer = empty(diffusers.QwenImageTransformer2DModel, model.configs["transformer"])
        fit = precision.fitting(transformer, recipe, dtype, keep)
        held = model.transformer if ready is None else _held(ready)
        table = _table(transformer, model, reader.device, ready, placing)
        typed(transformer, dtype)
        fit = placing.transformer_fit(transformer, fit)
        weights.fill(transformer, held, reader, fit, placing.skips)
        placing.transformer(transformer, held)
        transformer.to(reader.device)
        if table is not None and ready is not None:
            places = header.read(ready.folder / artefact.TABLES).tensors
            table.load(dict(zip(places, reader.places(list(places.values())), strict=True)))
        return transformer, table


def _held(ready: Artefact) -> checkpoint.Checkpoint:
    return checkpoint.folder(ready.transformer, "transformer")


def _table(
    transformer: Any,
    model: Model,
    device: torch.device,
    ready: Artefact | None,
    placing: Placing,
) -> Tables | None:
    if ready is not None:
        return Tables(transformer, in_file(ready.folder / artefact.MODULATION, device))
    if placing.plan.tabled:
        return Tables(transformer, in_checkpoint(model.transformer, device))
    return None


def empty(kind: Any, config: dict[str, Any]) -> Any:
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
    qwen_vl.fuse_norms(encoder)
    return encoder


@contextlib.contextmanager
def _part(name: str, read: Read | None = None) -> Iterator[None]:
    """Turn whatever a damaged part makes its loader raise into `ModelInvalid`; time it."""
    began = time.perf_counter()
    try:
        yield
        if read is not None:
            read.parts[name] = time.perf_counter() - began
    except errors.VellumError:
        raise
    except Exception as error:
        if is_memory(error):
            log.warning("out of memory at the %s: %s", name, f"{error}".partition("\n")[0])
            raise errors.OutOfMemory(
                "The model does not fit in the card's memory, or the machine's: set "
                "engine.vram_budget_gb or engine.ram_budget_gb lower."
            ) from None
        if isinstance(error, torch.AcceleratorError):
            raise
        log.exception("loading the model's %s failed", name)
        raise errors.ModelInvalid(f"The model's {name} cannot be loaded.") from None
