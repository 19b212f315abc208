"""Attention kernels: found by running them, each one's absence survived."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from vellumd import errors
from vellumd.engine import attention
from vellumd.engine.linears import FP8
from vellumd.engine.trial import Standby

CPU = torch.device("cpu")
dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)


def inputs(dtype: torch.dtype, rows: int = 70, others: int = 90) -> list[Tensor]:
    numbers = torch.Generator().manual_seed(1)
    return [
        torch.randn(1, count, 3, 32, generator=numbers).to(dtype)
        for count in (rows, others, others)
    ]


@dtypes
def test_the_best_one_is_what_the_stock_forward_uses(dtype: torch.dtype) -> None:
    """On a CPU there is no FA3 and no cuDNN; flash gives the stock forward's bits."""
    choice = attention.choose("auto", CPU, dtype)
    assert choice.name == "flash"
    assert set(choice.refused) == {"fa3", "cudnn"}
    given = inputs(dtype)
    assert torch.equal(choice.attention(*given), attention.default(*given))
    assert attention.choose_8bit(CPU, dtype) is None


@dtypes
@pytest.mark.parametrize("scores", [1, 3 * 90 * 16, 1 << 27])
def test_plain_attention_in_pieces(
    dtype: torch.dtype, scores: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many rows at once, the last resort is right."""
    monkeypatch.setattr(attention, "SCORES", scores)
    given = inputs(dtype)
    exact = attention.default(*(x.double() for x in given))
    error = (attention.plain(*given) - exact).norm() / exact.norm()
    assert error <= (1e-6 if dtype is torch.float32 else 1e-2)


def broken(*_: Tensor) -> Tensor:
    raise RuntimeError("no kernel image is available")


def wrong(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    return attention.default(query, key, value) * 1.02


def not_a_number(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    return attention.default(query, key, value) * float("nan")


KINDS = list(attention.KINDS)


@pytest.mark.parametrize("kernel", [broken, wrong, not_a_number])
@pytest.mark.parametrize("last", KINDS)
def test_whatever_is_missing_the_next_one_runs(
    last: str, kernel: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Kernels that fail, err or give not-a-number are passed over, with the reason kept."""
    before = KINDS[: KINDS.index(last)]
    for name in KINDS:
        monkeypatch.setitem(attention.KINDS, name, kernel if name in before else attention.default)
    choice = attention.choose("auto", CPU, torch.bfloat16)
    assert choice.name == last
    assert set(choice.refused) == set(before)
    for why in choice.refused.values():
        assert ("no kernel image" in why) if kernel is broken else ("its error is" in why)


def refused(kernel: attention.Attention) -> str | None:
    return attention.complaint(kernel, attention.TOLERANCE, CPU, torch.float32)


def test_a_kernel_is_tried_a_second_time() -> None:
    """As it is launched from then on."""
    asked: list[int] = []

    def at_first(*given: Tensor) -> Tensor:
        asked.append(1)
        return wrong(*given) if len(asked) > 1 else attention.default(*given)

    assert "its error is" in (refused(at_first) or "")
    assert refused(attention.default) is None


@pytest.mark.parametrize("head", range(4))
def test_each_head_is_judged_by_itself(head: int) -> None:
    """One that is wrong is a ten-thousandth of the others' numbers, or the largest of them."""

    def spoilt(*given: Tensor) -> Tensor:
        made = attention.default(*given).clone()
        made[:, :, head] *= 1.02
        return made

    assert "its error is" in (refused(spoilt) or "")


def test_a_wanted_one_that_does_not_run_is_an_error() -> None:
    """A key that forces a kernel is not silently ignored."""
    assert attention.choose("math", CPU, torch.float32).attention is attention.plain
    with pytest.raises(errors.RecipeUnsupported, match="fa3"):
        attention.choose("fa3", CPU, torch.float32)


def test_a_lost_card_is_no_missing_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """An error after which nothing runs is raised, not taken for a missing kernel."""

    def lost(*_: Tensor) -> Tensor:
        raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setitem(attention.KINDS, "fa3", lost)
    with pytest.raises(torch.AcceleratorError):
        attention.choose("auto", CPU, torch.float32)


def test_a_kernel_that_is_not_for_this_card_loses_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the card still answers after the error, the next kernel runs."""

    def no_image(*_: Tensor) -> Tensor:
        raise torch.AcceleratorError("CUDA error: no kernel image is available for execution")

    monkeypatch.setitem(attention.KINDS, "fa3", no_image)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    choice = attention.choose("auto", CPU, torch.float32)
    assert choice.name == "flash" and "no kernel image" in choice.refused["fa3"]


@pytest.mark.parametrize(("major", "asked"), [(8, True), (9, True), (10, False), (12, False)])
def test_fa3_is_not_asked_where_it_would_end_the_process(
    major: int, asked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has kernels for SM8x and SM90, and calls `exit` on any other card."""
    monkeypatch.setitem(sys.modules, "fa3_fwd_interface", package(scaled=True))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (major, 0))
    try:
        attention._fa3(torch.device("cuda", 0))
    except RuntimeError:
        assert not asked
    else:
        assert asked


def package(scaled: bool) -> ModuleType:
    """In place of fa3-fwd's CUDA: its interface in plain arithmetic, with or without scales."""

    def flash_attn_func(q: Tensor, k: Tensor, v: Tensor, **given: Tensor) -> tuple[Tensor, Tensor]:
        whole = []
        for name, x in (("q", q), ("k", k), ("v", v)):
            scale = given.get(f"{name}_descale")
            assert (scale is None) == (x.dtype is not FP8)
            if scale is not None:
                assert scale.shape == (1, x.shape[2]) and scale.dtype is torch.float32
                scale = scale if scaled else scale.mean(1, keepdim=True)
                x = x.float() * scale[:, None, :, None]
            whole.append(x)
        mixed = attention.plain(*whole)
        return (mixed.bfloat16() if q.dtype is FP8 else mixed), torch.zeros(1)

    module = ModuleType("fa3_fwd_interface")
    module.flash_attn_func = flash_attn_func  # type: ignore[attr-defined]
    return module


@pytest.mark.parametrize("scaled", [True, False])
def test_8_bits_need_a_scale_for_each_head(scaled: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the scales of heads the error is that of e4m3; an interface that mixes them up is
    told by the probe."""
    monkeypatch.setitem(sys.modules, "fa3_fwd_interface", package(scaled))
    assert attention.choose("auto", CPU, torch.bfloat16).name == "fa3"
    choice = attention.choose_8bit(CPU, torch.bfloat16)
    assert (choice is not None) == scaled
    if choice:
        given = inputs(torch.bfloat16)
        assert choice.attention(*given).dtype is torch.bfloat16


def test_8_bits_go_on_without_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where its rounding fails after the trial, the plain one does it."""
    monkeypatch.setitem(sys.modules, "fa3_fwd_interface", package(True))
    rounding, calls = attention.KINDS_8BIT[attention.WITHOUT_TRITON], 0

    def late(*given: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        if calls > 2:  # the trial's
            raise RuntimeError("no registers are left")
        return rounding(*given)

    monkeypatch.setitem(attention.KINDS_8BIT, "fa3-8bit", late)
    standby = Standby()
    choice = attention.choose_8bit(CPU, torch.bfloat16, standby=standby)
    assert choice is not None and choice.name == "fa3-8bit" and calls == 2
    given = inputs(torch.bfloat16)
    for _ in range(2):
        assert torch.equal(choice.attention(*given), rounding(*given))
    assert calls == 3 and [*standby.replaced] == ["fa3-8bit"]
