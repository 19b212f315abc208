"""Where the milliseconds of one block go: kernels, by name and by what they are for."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import torch

from vellumd.engine.bench.measure import WARM, timed
from vellumd.engine.residual import Residual

ROUNDS = 5
BLOCKS = 60
"""Of Qwen-Image-Edit's transformer."""
NAME = 90
"""Characters of a kernel's name that are told; what is beyond is cutlass' template."""
GROUPS = {
    "attention": r"flash|fmha|sdpa|_by_head|_largest|attention",
    "matrix products": r"nvjet|gemm|cutlass|addmm|scaled_mm|aten::b?mm",
    "fused kernels": r"^_[a-z]|^triton_",
}
"""What the names of kernels hold, looked for in this order; the rest is copies and others."""
OTHERS = "copies and others"
Kernel = tuple[str, int, float]
"""Name, count, milliseconds."""


def group(name: str) -> str:
    """What the kernel `name` is for."""
    return next((one for one, holds in GROUPS.items() if re.search(holds, name)), OTHERS)


def summed(kernels: Iterable[Kernel]) -> dict[str, Any]:
    """Totals by group and by shortened name, most first.

    Names are summed, for several kernels begin alike: one FA3 kernel's time is not another's.
    """
    groups = dict.fromkeys([*GROUPS, OTHERS], 0.0)
    names: dict[str, list[float]] = {}
    for name, count, ms in kernels:
        groups[group(name)] += ms
        of_name = names.setdefault(name.removeprefix("void ")[:NAME], [0, 0.0])
        of_name[0] += count
        of_name[1] += ms
    total = sum(groups.values())
    return {
        "kernels_ms": round(total, 4),
        "groups_ms": {name: round(ms, 4) for name, ms in groups.items()},
        f"groups_of_{BLOCKS}_blocks_ms": {n: round(BLOCKS * ms, 1) for n, ms in groups.items()},
        f"{BLOCKS}_blocks_ms": round(BLOCKS * total, 1),
        "kernels": {
            name: [round(count, 2), round(ms, 4)]
            for name, (count, ms) in sorted(names.items(), key=lambda one: -one[1][1])
        },
    }


def of_block(
    forward: Callable[[], object], block: torch.nn.Module, device: torch.device, prompts: int = 1
) -> dict[str, Any]:
    """`block` alone with what it is given last in `forward`: its kernels, and its own time.

    It does the work of so many `prompts`; what is told is the share of one of them.
    """
    given: list[tuple[Any, ...]] = []
    handle = block.register_forward_pre_hook(lambda _, args: given.append(as_they_are(args)))
    for _ in range(WARM):
        forward()
    handle.remove()
    args = given[-1]
    times = sorted(timed(lambda: block(*args), device) for _ in range(ROUNDS))
    found = summed(
        (name, count, ms / prompts) for name, count, ms in kernels(lambda: block(*args), device)
    )
    return {"block_ms": round(1000 * times[ROUNDS // 2] / prompts, 4)} | found


def as_they_are(args: Iterable[Any]) -> tuple[Any, ...]:
    """`args` of a block, whose rows those after it make fewer."""
    return tuple(replace(arg) if isinstance(arg, Residual) else arg for arg in args)


def kernels(run: Callable[[], object], device: torch.device) -> list[Kernel]:
    """The kernels of one `run`, the mean of `ROUNDS`; on a CPU, torch's operations."""
    cuda = device.type == "cuda"
    activity = torch.profiler.ProfilerActivity
    with torch.profiler.profile(activities=[activity.CUDA if cuda else activity.CPU]) as profile:
        for _ in range(ROUNDS):
            run()
        if cuda:
            torch.cuda.synchronize(device)
    found = []
    for event in profile.key_averages():
        us = float(event.self_device_time_total if cuda else event.self_cpu_time_total)
        if us:  # calls of the driver take the card no time
            found.append((event.key, event.count / ROUNDS, us / 1000 / ROUNDS))
    return found
