"""A model folder in the diffusers layout to loaded components."""

# diffusers and transformers annotate in part only.
# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

import contextlib
import itertools
import logging
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
from vellumd.engine.precision import Fitting, Recipe
from vellumd.engine.vae import flatten, last_taps

log = logging.getLogger(__name__)

Beat = Callable[[str, int, int], None]
MIB = 1 << 20


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

    def encoder_blocks(self) -> list[torch.nn.Module]:
        """The text encoder's transformer blocks, those of its vision tower first."""
        encoder = self.text_encoder.model
        return [*encoder.visual.blocks, *encoder.language_model.layers]


def device_of(wanted: str) -> torch.device:
    """The device `wanted`: `auto` and the number of a GPU mean the CPU where there is none."""
    if wanted != "auto" and not wanted.isdecimal():
        return torch.device(wanted)
    if torch.cuda.is_available():
        return torch.device("cuda", 0 if wanted == "auto" else int(wanted))
    return torch.device("cpu")


def load(
    folder: Path,
    device: torch.device,
    beat: Beat,
    recipe: Recipe = precision.PLAIN,
    keep: Iterable[str] = (),
) -> Parts:
    """Load the model in `folder`, telling `beat` each tensor as MiB of the whole.

    bfloat16 on a GPU, float32 on a CPU; the transformer as `recipe` says, without the
    linears whose names end in one of `keep`. Raises `ModelInvalid` naming the part that is
    missing, damaged or of another kind, and `OutOfMemory`.
    """
    if not (folder / "model_index.json").is_file():
        raise errors.ModelInvalid("The model folder has no model_index.json.")
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    names = ("transformer", "text_encoder", "vae")
    files = {name: _files(folder / name, name) for name in names}
    total = sum(file.stat().st_size for file in itertools.chain(*files.values())) // MIB
    done = 0

    def read(size: int) -> None:
        nonlocal done
        done += size
        beat("load", done // MIB, total)

    with _part("processor"):
        processor = transformers.Qwen2VLProcessor.from_pretrained(
            folder / "processor", local_files_only=True
        )
    with _part("scheduler"):
        scheduler = diffusers.FlowMatchEulerDiscreteScheduler.load_config(folder / "scheduler")
    with _part("text_encoder"):
        text_encoder = _text_encoder(folder / "text_encoder", device, dtype)
        read(sum(file.stat().st_size for file in files["text_encoder"]))
    with _part("vae"):
        vae = _empty(diffusers.AutoencoderKLQwenImage, folder / "vae")
        adapt = last_taps(vae)
        weights.fill(flatten(vae), files["vae"], "vae", device, dtype, read, adapt)
    with _part("transformer"):
        transformer = _empty(diffusers.QwenImageTransformer2DModel, folder / "transformer")
        fit = Fitting(transformer, recipe, dtype, keep)
        weights.fill(transformer, files["transformer"], "transformer", device, dtype, read, fit=fit)
    for model in (transformer, text_encoder, vae):
        model.eval().requires_grad_(False)
    return Parts(transformer, text_encoder, vae, processor, dict(scheduler), device, dtype)


def _files(folder: Path, part: str) -> list[Path]:
    with _part(part):
        return weights.shards(folder, part)


def _empty(kind: Any, folder: Path) -> Any:
    """The model of `folder`'s config without weights.

    Only parameters are left out: the RoPE tables are plain tensors and must be real.
    """
    config = kind.load_config(folder)
    with accelerate.init_empty_weights(include_buffers=False):
        return kind.from_config(config)


def _text_encoder(folder: Path, device: torch.device, dtype: torch.dtype) -> Any:
    """Qwen2.5-VL by transformers' own loader, which knows its older key names."""
    loaded: Any = transformers.Qwen2_5_VLForConditionalGeneration.from_pretrained(
        folder,
        dtype=dtype,
        device_map={"": device},
        use_safetensors=True,
        local_files_only=True,
        output_loading_info=True,
    )
    model, found = loaded
    # lm_head is never used here, so a file may lack it.
    missing = [key for key in found["missing_keys"] if not key.startswith("lm_head")]
    if missing or found["mismatched_keys"]:
        raise errors.ModelInvalid("The model's text_encoder lacks tensors or has others.")
    return model


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
