"""What rounding costs: per linear, per block and at the end, on weights of the real size.

    python -m tests.bench.precision --out FILE
    python -m tests.bench.precision --tiny           # on any machine: does the script run?

A transformer of Qwen-Image-Edit-2511's size with random weights (`--blocks` of its 60), fed
what an edit with three references feeds it. Rounding as the predecessor does it, by row for
weights alone, and by row and token; with the keep-list and without; on natural weights and
on ones rescaled to a sixteenth, which is the same function. Then how long a linear takes
each way, and what `vellumd convert` makes of a second. Random weights prove nothing about
pictures; the demo's gate does (docs/demo.md).
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from diffusers import QwenImageTransformer2DModel
from torch import Tensor

from tests.bench.record import Record
from tests.engine import numerics
from vellumd import model_card
from vellumd.engine import convert, linears, loading, precision
from vellumd.settings import EngineSettings
from vellumd.weights.model import open_model

GRID = 54, 76
"""Rows and columns of tokens of a picture of 864x1216, what 736x1011 becomes."""
TEXT = 650
ROUNDS = 10
SHAPES = {"to_q": (3072, 3072), "mlp up": (3072, 12288), "mlp down": (12288, 3072)}


def main() -> None:
    """Measure and write down."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--tiny", action="store_true", help="the demo's own transformer, on any machine"
    )
    parser.add_argument("--blocks", type=int, default=60)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    if args.tiny:
        torch.set_num_threads(1)
    device = loading.device_of("auto")
    transformer, feed = demo() if args.tiny else real(args.blocks, device)
    tokens = feed["hidden_states"].shape[1]
    record = Record(args.out)
    record["recipes"] = recipes(device)
    record["linears"] = [each(name, *shape, tokens, device) for name, shape in shapes(args.tiny)]
    record["blocks"] = errors(numerics.by_block, transformer, feed)
    record["whole"] = errors(numerics.whole, transformer, feed)
    record["convert"] = converting(args.tiny)


def recipes(device: torch.device) -> dict[str, Any]:
    """What the probe says of each recipe here, and which is chosen."""
    found: dict[str, Any] = {
        name: precision.complaint(recipe, device) or "runs"
        for name, recipe in precision.RECIPES.items()
    }
    found["triton"] = precision.without_triton(device) or "runs"
    found["chosen"] = precision.choose(EngineSettings(), device).recipe.name
    return found


def demo() -> tuple[Any, dict[str, Any]]:
    """The demo's transformer and two pictures of 64x64."""
    parts = loading.load(model_card.DEMO_FOLDER, torch.device("cpu"), lambda *_: None)
    return parts.transformer, fed(parts.transformer, (4, 4), 1, 20, torch.device("cpu"))


def real(blocks: int, device: torch.device) -> tuple[Any, dict[str, Any]]:
    """The real transformer with `blocks` blocks of random bfloat16 weights of size 0.02."""
    with init_empty_weights(include_buffers=False):
        transformer: Any = QwenImageTransformer2DModel(  # type: ignore[no-untyped-call]
            num_layers=blocks, zero_cond_t=True
        )
    numbers = torch.Generator(device).manual_seed(0)
    for name, parameter in list(transformer.named_parameters()):
        tensor = torch.empty(parameter.shape, dtype=torch.bfloat16, device=device)
        if parameter.dim() < 2:
            tensor.fill_(1.0 if name.endswith("weight") else 0.0)
        else:
            tensor.normal_(0, 0.02, generator=numbers)
        home, _, last = name.rpartition(".")
        made = torch.nn.Parameter(tensor, requires_grad=False)
        transformer.get_submodule(home)._parameters[last] = made
    return transformer.eval(), fed(transformer, GRID, 3, TEXT, device)


def fed(
    transformer: Any, grid: tuple[int, int], references: int, text: int, device: torch.device
) -> dict[str, Any]:
    """Random inputs of an edit at time 0.75."""
    like = transformer.img_in.weight
    count = grid[0] * grid[1] * (1 + references)
    numbers = torch.Generator(device).manual_seed(1)

    def noise(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=numbers, device=device).to(like)

    return {
        "hidden_states": noise(1, count, 64),
        "encoder_hidden_states": noise(1, text, transformer.config.joint_attention_dim),
        "timestep": torch.tensor([0.75], device=device).to(like),
        "img_shapes": [[(1, *grid)] * (1 + references)],
    }


def errors(measure: Callable[..., Any], transformer: Any, feed: dict[str, Any]) -> dict[str, Any]:
    """Each variant's errors, on natural and on rescaled weights."""
    found: dict[str, Any] = {}
    for name, small in (("natural", False), ("rescaled by 1/16", True)):
        measured = measure(transformer, feed, numerics.VARIANTS, small=small)
        found[name] = {
            variant: summary(error) if isinstance(error, list) else round(error, 5)
            for variant, error in measured.items()
        }
    return found


def summary(values: list[float]) -> dict[str, float]:
    """Least, median, largest."""
    return {
        "least": round(min(values), 5),
        "median": round(statistics.median(values), 5),
        "largest": round(max(values), 5),
    }


def shapes(demo: bool) -> list[tuple[str, tuple[int, int]]]:
    """Inputs and outputs of linears; of the demo a sixteenth."""
    scale = 16 if demo else 1
    return [(name, (ins // scale, outs // scale)) for name, (ins, outs) in SHAPES.items()]


@torch.inference_mode()
def each(name: str, ins: int, outs: int, tokens: int, device: torch.device) -> dict[str, Any]:
    """One linear: its error and its milliseconds each way, rescaled too."""
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    numbers = torch.Generator(device).manual_seed(2)
    linear = torch.nn.Linear(ins, outs, device=device, dtype=dtype).requires_grad_(False)
    linear.weight.normal_(0, 0.02, generator=numbers)
    x = torch.randn(1, tokens, ins, generator=numbers, device=device).to(dtype)
    ways: dict[str, Any] = {
        "bf16": lambda one: one,
        "plain cast": numerics.cast,
        **{kind.__name__: numerics.rounded(kind)
           for kind in (linears.WeightOnly, linears.RowGemm, linears.TensorGemm)},
    }  # fmt: skip
    found: dict[str, Any] = {"linear": name, "shape": [tokens, ins, outs]}
    for scale in (1.0, 1 / 16):
        linear.weight.mul_(scale)
        exact = torch.nn.functional.linear(x.float(), linear.weight.float(), linear.bias.float())
        for way, make in ways.items():
            try:
                module = make(linear)
                error = round(numerics.distance(module(x), exact), 5)
                took = milliseconds(lambda: module(x), device)  # noqa: B023 (called at once)
                found[f"{way}, x{scale:g}"] = {"error": error, "ms": took}
            except RuntimeError as failure:
                found[f"{way}, x{scale:g}"] = str(failure).partition("\n")[0]
        linear.weight.div_(scale)
    return found


def milliseconds(work: Callable[[], Any], device: torch.device) -> float:
    """The median of `ROUNDS`, after two to warm up."""
    times = []
    for number in range(ROUNDS + 2):
        if device.type == "cuda":
            torch.cuda.synchronize()
        began = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize()
        if number >= 2:
            times.append(1000 * (time.perf_counter() - began))
    return round(statistics.median(times), 3)


def converting(demo: bool) -> dict[str, Any]:
    """The rate of rounding on the host, and of a whole conversion of the demo."""
    size = 256 if demo else 12288
    weight = torch.randn(size, 3072).bfloat16()
    took = milliseconds(lambda: linears.by_row(weight.float()), torch.device("cpu"))
    model = open_model(model_card.DEMO_FOLDER)
    job = convert.Conversion(model, model_card.read(model_card.DEMO))
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        job.run(Path(folder) / "artefact", lambda *_: None)
        seconds = time.perf_counter() - began
    return {
        "rounding_gb_s": round(weight.nbytes / took / 1e6, 2),
        "threads": torch.get_num_threads(),
        "demo_s": round(seconds, 2),
    }


if __name__ == "__main__":
    main()
