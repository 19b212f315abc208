"""Times, memory and errors of methods."""

# torch annotates in part only.
# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from vellumd.engine.bench.methods import Method
from vellumd.engine.bench.workload import TIMES, Workload
from vellumd.engine.block import Streams
from vellumd.engine.modulation import modulate
from vellumd.engine.plan import Plan
from vellumd.engine.residual import Residual
from vellumd.engine.rows import ONE
from vellumd.engine.transformer import Inputs, Own, Stock
from vellumd.engine.trial import refusal

WARM = 2
"""Forwards before those that count: the first ones compile, tune and allocate."""


@torch.inference_mode()
def times(
    methods: Sequence[Method], rounds: int, device: torch.device, tell: Callable[[str], None]
) -> list[list[float] | str]:
    """Seconds of a forward in `rounds` of each method, which take turns; or why it does not run.

    Each turn is prepared and begins with a forward that does not count, so that only one
    method at a time holds what it needs beside its weights.
    """
    seconds: list[list[float]] = [[] for _ in methods]
    failed: dict[str, str] = {}
    for number in range(-1, rounds):
        for method, its in zip(methods, seconds, strict=True):
            if method.name in failed:
                continue
            tell(f"{method.name}: {f'round {number + 1}' if number >= 0 else 'warming up'}")
            if why := refusal(partial(_turn, method, its, device, count=number >= 0)):
                failed[method.name] = why
    return [failed.get(one.name, its) for one, its in zip(methods, seconds, strict=True)]


def _turn(method: Method, seconds: list[float], device: torch.device, *, count: bool) -> None:
    run = method.prepare()
    for _ in range(1 if count else WARM):
        run()
    if count:
        seconds.append(timed(run, device) / len(method.prompts))


def timed(run: Callable[[], object], device: torch.device) -> float:
    """Seconds that `run` takes, by the card's own clock where there is one."""
    if device.type != "cuda":
        began = time.perf_counter()
        run()
        return time.perf_counter() - began
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda.synchronize(device)
    begin.record()
    run()
    end.record()
    torch.cuda.synchronize(device)
    return float(begin.elapsed_time(end)) / 1000


def figures(method: Method, seconds: list[float]) -> dict[str, Any]:
    """What is told of one method."""
    median = statistics.median(seconds)
    return {
        "name": method.name,
        "exactness": method.exactness,
        "prompts": len(method.prompts),
        "forward_s": round(median, 5),
        "least_s": round(min(seconds), 5),
        "most_s": round(max(seconds), 5),
        "tflops": round(method.flops / median / 1e12, 3),
    }


@torch.inference_mode()
def memory(method: Method, device: torch.device) -> tuple[Tensor, dict[str, float]]:
    """What a forward of the first prompt gives; gigabytes of the weights, and of all else at the
    forwards' height.
    """
    unique = {tensor.data_ptr(): tensor for tensor in method.transformer.state_dict().values()}
    found = {"weights_gb": round(sum(tensor.nbytes for tensor in unique.values()) / 1e9, 3)}
    if device.type != "cuda":
        return method.prepare()()[:1], found
    torch.cuda.synchronize(device)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    made = method.prepare()()
    grown = torch.cuda.max_memory_allocated(device) - before
    found["activations_gb"] = round(grown / 1e9, 3)
    return made[:1], found


@torch.inference_mode()
def block_errors(
    base: Any, method: Method, workload: Workload, device: torch.device
) -> list[float]:
    """The relative error of each block of `method`, fed with what diffusers' block was fed.

    Of the target's rows, after the last block too.
    """
    assert isinstance(method.forward, Own)
    given, tokens = workload.inputs(base, device)
    mine = dict(zip(base.transformer_blocks, method.forward.blocks, strict=True))
    inputs = Inputs.of(base, given)
    clock = torch.tensor(TIMES, device=device)
    (mods,) = modulate(base, clock[-1:].to(tokens.dtype) / 1000)
    by_block = dict(zip(mine.values(), mods.blocks, strict=True))
    found: list[float] = []

    def compare(block: torch.nn.Module, _: object, asked: dict[str, Any], output: Any) -> None:
        own = mine[block]
        image, text = asked["hidden_states"], asked["encoder_hidden_states"]
        passing = Residual(image, workload.tokens)
        own(
            passing, Residual(text, text.shape[1]), Streams.of(own.stock), by_block[own],
            inputs.ropes_of(ONE), inputs.rooms.enter(0, ONE), ONE,
        )  # fmt: skip
        made = passing.whole()
        found.append(error(made[:, : workload.tokens], output[1][:, : workload.tokens]))

    handles = [block.register_forward_hook(compare, with_kwargs=True) for block in mine]
    Stock(base).prepare(given, clock, Plan.full(len(TIMES)))(len(TIMES) - 1, ONE, tokens)
    for handle in handles:
        handle.remove()
    return found


def error(made: Tensor, exact: Tensor) -> float:
    """The relative error of `made`."""
    return float((made.float() - exact.float()).norm() / exact.float().norm())
