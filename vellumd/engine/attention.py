"""Attention over all rows, by the fastest kernel that runs here.

Which one does is found by running it once and comparing with plain arithmetic, never by a
card's or a package's name. Queries, keys and values are [1, rows, heads, width], as is the
result; there is no mask, since an edit has no padding (a mask forces slow paths).
"""

# torch annotates in part only.
# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812
from torch.nn.attention import SDPBackend, sdpa_kernel

from vellumd import errors
from vellumd.engine.kernels import heads
from vellumd.engine.trial import Standby, refusal

log = logging.getLogger(__name__)

Attention = Callable[[Tensor, Tensor, Tensor], Tensor]

SCORES = 1 << 27
"""Most scores that plain attention holds at once: 512 MB in float32."""
PROBE = 250, 322
"""Rows of the probe's queries and keys; they divide by no tile."""
WIDTH = 128
"""Channels of a head of Qwen-Image."""


def default(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """What torch takes by itself, as diffusers' forward does."""
    q, k, v = (x.transpose(1, 2) for x in (query, key, value))
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2)


def _by(backend: SDPBackend) -> Attention:
    def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        with sdpa_kernel(backend):
            return default(query, key, value)

    return attend


def plain(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Products, softmax, products (arXiv:1706.03762), some rows after the other."""
    rows = max(1, SCORES // (key.shape[1] * key.shape[2]))
    keys, values = key.permute(0, 2, 3, 1), value.transpose(1, 2)
    parts = []
    for some in query.split(rows, dim=1):
        scores = (some.transpose(1, 2) @ keys).float() * query.shape[-1] ** -0.5
        parts.append((scores.softmax(dim=-1).to(value.dtype) @ values).transpose(1, 2))
    return torch.cat(parts, dim=1)


def fa3(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """FlashAttention 3 (arXiv:2407.08608) of the package fa3-fwd; SM90."""
    return _first(_fa3(query.device)(query, key, value))


def _fa3_8bit(by_head: Callable[[Tensor, Tensor, Tensor], tuple[heads.Rounded, ...]]) -> Attention:
    """FlashAttention 3 on e4m3, with a scale for each head, rounded by `by_head`."""

    def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        (q, q_scale), (k, k_scale), (v, v_scale) = by_head(query, key, value)
        kernel = _fa3(q.device)
        mixed = _first(kernel(q, k, v, q_descale=q_scale, k_descale=k_scale, v_descale=v_scale))
        return mixed.to(query.dtype)

    return attend


def _fa3(device: torch.device) -> Callable[..., Tensor | tuple[Tensor, ...]]:
    """The package's function; RuntimeError where it has no kernels for the card."""
    # Asked for and not tried: without a kernel for the card its code ends the process.
    if device.type == "cuda" and torch.cuda.get_device_capability(device)[0] not in (8, 9):
        raise RuntimeError("fa3-fwd has no kernels for this card")
    attend: Callable[..., Tensor | tuple[Tensor, ...]] = importlib.import_module(
        "fa3_fwd_interface"
    ).flash_attn_func
    return attend


def _first(result: Tensor | tuple[Tensor, ...]) -> Tensor:
    """Versions differ in whether the softmax's sums come along."""
    return result[0] if isinstance(result, tuple) else result


KINDS: dict[str, Attention] = {
    "fa3": fa3,
    "cudnn": _by(SDPBackend.CUDNN_ATTENTION),
    "flash": _by(SDPBackend.FLASH_ATTENTION),
    "math": plain,
}
"""From the fastest to the one that runs everywhere (docs/performance.md)."""
WITHOUT_TRITON = "fa3-8bit without Triton"
KINDS_8BIT: dict[str, Attention] = {
    "fa3-8bit": _fa3_8bit(heads.by_head_triton),
    WITHOUT_TRITON: _fa3_8bit(heads.by_head),
}
"""Those of the tiers swift and turbo."""
TOLERANCE = 0.01
"""Largest relative error: bfloat16 gives 0.003."""
TOLERANCE_8BIT = 0.08
"""Rounding all three to e4m3 gives 0.05."""


@dataclass(frozen=True)
class Choice:
    """The kernel that runs, and why each better one does not."""

    name: str
    attention: Attention
    refused: dict[str, str]


def choose(
    wanted: str,
    device: torch.device,
    dtype: torch.dtype,
    width: int = WIDTH,
    without: Collection[str] = (),
) -> Choice:
    """The best kernel that runs on `device` with `dtype`, or the one `wanted` (not `auto`).

    `width` is that of a head; kernels are made for some. Those of `without` are not tried.

    Raises `RecipeUnsupported` where the one that is wanted does not run.
    """
    names = KINDS.keys() - set(without) if wanted == "auto" else {wanted}
    kinds = {name: kind for name, kind in KINDS.items() if name in names}
    found = _first_that_runs(kinds, TOLERANCE, device, dtype, width)
    if found is None:
        raise errors.RecipeUnsupported(f"The attention {wanted!r} does not run on this machine.")
    return found


def choose_8bit(
    device: torch.device, dtype: torch.dtype, width: int = WIDTH, standby: Standby | None = None
) -> Choice | None:
    """The best kernel on 8 bits that runs; None if none does.

    That without Triton stands behind the one with it in `standby`.
    """
    found = _first_that_runs(KINDS_8BIT, TOLERANCE_8BIT, device, dtype, width)
    twin = KINDS_8BIT[WITHOUT_TRITON]
    if found is None or standby is None or found.attention is twin:
        return found
    return replace(found, attention=standby.behind(found.name, found.attention, twin))


def _first_that_runs(
    kinds: dict[str, Attention],
    tolerance: float,
    device: torch.device,
    dtype: torch.dtype,
    width: int,
) -> Choice | None:
    refused: dict[str, str] = {}
    for name, attention in kinds.items():
        why = complaint(attention, tolerance, device, dtype, width)
        if why is None:
            return Choice(name, attention, refused)
        # Most kernels are for cards: that one is missing is news on a card alone.
        level = logging.DEBUG if device.type == "cpu" else logging.INFO
        log.log(level, "attention %s is left out: %s", name, why)
        refused[name] = why
    return None


def complaint(
    attention: Attention,
    tolerance: float,
    device: torch.device,
    dtype: torch.dtype,
    width: int = WIDTH,
) -> str | None:
    """Why `attention` cannot be used, found by running it; None if it can.

    An error that has lost the card is raised: nothing runs after it.
    """

    def judged() -> str | None:
        # Twice, since Triton's kernels are launched another way from the second time on.
        for _ in range(2):
            error = tried(attention, device, dtype, width)
            if not error <= tolerance:  # not a number is no less than it either
                return f"its error is {error:.3f}"
        return None

    return refusal(judged)


@torch.inference_mode()
def tried(
    attention: Attention, device: torch.device, dtype: torch.dtype, width: int = WIDTH
) -> float:
    """The largest relative error of a head against plain arithmetic in float64 on the CPU."""
    numbers = torch.Generator().manual_seed(0)
    rows, others = PROBE
    # Heads of very different size: one scale for all of them shows.
    sizes = torch.logspace(-2, 2, 4)[:, None]
    query, key, value = (
        (torch.randn(1, count, 4, width, generator=numbers) * size).to(dtype)
        for count, size in ((rows, 1), (others, 1), (others, sizes))
    )
    exact = plain(query.double(), key.double(), value.double())
    made = attention(*(x.to(device) for x in (query, key, value))).cpu().double()
    errors_by_head = (made - exact).norm(dim=(1, 3)) / exact.norm(dim=(1, 3))
    return float(errors_by_head.max())
