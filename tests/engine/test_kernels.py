"""Operations between matrix products: Triton's against the plain ones, and their absence."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.engine import random_transformer as small
from vellumd import errors
from vellumd.engine import attention, linears, precision
from vellumd.engine.kernels import choice
from vellumd.engine.kernels.choice import PLAIN, TRITON, Ops
from vellumd.engine.kernels.feed import Fed, Need
from vellumd.engine.lora import Branched, Pair
from vellumd.engine.plan import Plan
from vellumd.engine.transformer import Own, Stock

CPU = torch.device("cpu")
NAMES = [field.name for field in fields(Ops)]
PLAN = Plan.full(len(small.TIMES))

INTERPRETED = """
import torch
from vellumd.engine.kernels import choice
for dtype in (torch.float32, torch.bfloat16):
    for name in {names}:
        for made, exact, tolerance in choice.tried(name, choice.TRITON, torch.device("cpu"), dtype):
            small = tolerance == choice.TOLERANCE_SMALL
            if small:
                # The interpreter of Triton 3.8 rounds 127 to 64 in e4m3: the carry is lost.
                made = torch.where(torch.isclose(made * 2, exact, rtol=0.01), exact, made)
            print(name, dtype, small, float((made - exact).norm() / exact.norm()))
"""


@pytest.fixture(scope="module")
def interpreted() -> list[tuple[str, str, bool, float]]:
    """Operation, type, whether e4m3, and the error of Triton's, run by its interpreter."""
    root = str(Path(__file__).parents[2])
    ran = subprocess.run(
        [sys.executable, "-c", INTERPRETED.format(names=NAMES)],
        capture_output=True,
        text=True,
        env={**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": root},
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    found = (line.split() for line in ran.stdout.splitlines())
    return [(name, dtype, small == "True", float(error)) for name, dtype, small, error in found]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", ["torch.float32", "torch.bfloat16"])
def test_a_kernel_does_what_its_twin_does(
    name: str, dtype: str, interpreted: list[tuple[str, str, bool, float]]
) -> None:
    """In float32 to its rounding; in bfloat16 to what rounding once in place of twice makes;
    in e4m3 but for a few numbers that lie between two."""
    whole = [error for *of, small, error in interpreted if of == [name, dtype] and not small]
    small = [error for *of, small, error in interpreted if of == [name, dtype] and small]
    assert len(whole) == (2 if name in ("norm_modulate", "gelu", "feed") else 1)
    assert len(small) == (2 if name in ("norm_modulate", "gelu", "feed") else 0)
    assert max(whole) <= (2e-6 if dtype == "torch.float32" else 6e-3)
    assert all(error <= (5e-3 if dtype == "torch.float32" else 3e-2) for error in small)


@pytest.mark.parametrize("recipe", [precision.ROWS, precision.TENSOR, precision.WEIGHTS])
@torch.inference_mode()
def test_rounding_once_for_all_linears_changes_no_bit(recipe: precision.Recipe) -> None:
    """Queries, keys and values share their e4m3 input; the forward stays what diffusers' is."""
    model = small.transformer(torch.bfloat16)
    precision.hold(model, recipe)
    given, tokens = small.conditioning(torch.bfloat16, 2), small.noise(torch.bfloat16)
    stock = Stock(model).prepare(given, small.TIMES, PLAN)(1, 0, tokens)
    own = Own(model, attention.default).prepare(given, small.TIMES, PLAN)(1, 0, tokens)
    assert small.error(own, stock) <= 1e-2


@pytest.mark.parametrize("kind", [linears.RowGemm, linears.TensorGemm])
def test_forms_of_an_input(kind: type[linears.Fp8Linear]) -> None:
    """Each linear takes the form that it multiplies, and a branch beside e4m3 takes both."""
    numbers = torch.Generator().manual_seed(2)
    weight, bias = torch.randn(32, 48, generator=numbers), torch.randn(32, generator=numbers)
    plain = torch.nn.Linear(48, 32)
    eight = kind(48, 32, bias=torch.float32, device="cpu")
    precision.fill(eight, weight, bias)
    pair = Pair(torch.randn(4, 48, generator=numbers), torch.randn(32, 4, generator=numbers), 0.5)
    branched = Branched(eight, [pair])
    assert Need.of(plain, plain) == (True, False)
    assert Need.of(eight, eight) == (False, True)
    assert Need.of(eight, plain) == Need.of(branched) == (True, True)
    assert Need.of(Branched(plain, [pair])) == (True, False)
    x = torch.randn(1, 9, 48, generator=numbers)
    for linear in (plain, eight, branched, Branched(plain, [pair])):
        fed = Fed.of(x, Need.of(linear))
        assert torch.equal(fed.to(linear), linear(x))
        assert torch.equal(fed.first(4).to(linear), linear(x[:, :4]))


def broken(*_: object) -> Tensor:
    raise RuntimeError("no compiler")


@pytest.mark.parametrize("name", NAMES)
def test_a_kernel_that_does_not_run_is_replaced(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Alone, with the reason kept; a wanted one ends the start."""
    ops = replace(PLAIN, **{name: broken})
    chosen = choice.those_that_run(ops, CPU, torch.float32)
    assert chosen.ops == PLAIN
    assert chosen.refused == {name: "RuntimeError: no compiler"}
    monkeypatch.setattr(choice, "TRITON", ops)
    with pytest.raises(errors.RecipeUnsupported):
        choice.choose("triton", CPU, torch.float32)


def test_kernels_that_err_are_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    """A result a few percent off is told."""

    def off(*given: object) -> Fed:
        made = PLAIN.gelu(*given)  # type: ignore[arg-type]
        return made._replace(whole=made.whole * 1.03)  # type: ignore[operator]

    why = choice.complaint("gelu", replace(PLAIN, gelu=off), CPU, torch.float32)
    assert why is not None and "error of result 0 is 0.03" in why
    assert all(choice.complaint(name, PLAIN, CPU, torch.bfloat16) is None for name in NAMES)


def test_a_cpu_takes_the_plain_ones() -> None:
    """`auto` on a CPU tries nothing, and Triton without a card does not run."""
    assert choice.choose("auto", CPU, torch.float32).ops is PLAIN
    assert choice.complaint("gelu", TRITON, CPU, torch.float32) is not None
