"""Operations between matrix products: Triton's against the plain ones, and their absence."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import triton
from torch import Tensor

from tests.bench import host
from tests.engine import random_transformer as small
from vellumd import errors
from vellumd.engine import attention, linears, precision
from vellumd.engine.kernels import choice, feed, gelu, modulate, rotate
from vellumd.engine.kernels import heads as heads_of
from vellumd.engine.kernels.choice import PLAIN, TRITON, Ops
from vellumd.engine.kernels.feed import Fed, Need
from vellumd.engine.kernels.language import Kernel
from vellumd.engine.lora import Branched, Pair
from vellumd.engine.plan import Plan
from vellumd.engine.transformer import Own, Stock
from vellumd.engine.vae_forward import FAST

CPU = torch.device("cpu")
NAMES = [field.name for field in fields(Ops)]
PLAN = Plan.full(len(small.TIMES))

INTERPRETED = """
import itertools
import torch
from vellumd.engine import vae_forward
from vellumd.engine.kernels import choice, heads
torch.manual_seed(0)
for dtype in (torch.float32, torch.bfloat16):
    # Heads of 40: 120 numbers do not fill the pieces of a row. Of 32: they do, as the real ones.
    for name, choice.WIDTH in itertools.product({names}, (40, 32)):
        # Most have a program for each row, which is slow to interpret: a few rows do.
        choice.ROWS, choice.SPLIT = (37, 11) if name == "norm_rotate" else (11, 4)
        for made, exact, tolerance in choice.tried(name, choice.TRITON, torch.device("cpu"), dtype):
            small = tolerance == choice.TOLERANCE_SMALL
            if small:
                # The interpreter of Triton 3.8 rounds 127 to 64 in e4m3: the carry is lost.
                made = torch.where(torch.isclose(made * 2, exact, rtol=0.01), exact, made)
            print(name, dtype, small, float((made - exact).norm() / exact.norm()))
    for name in vae_forward.TRITON:
        for made, exact, _ in vae_forward.tried(name, vae_forward.FAST, torch.device("cpu"), dtype):
            print("pixels." + name, dtype, False, float((made - exact).norm() / exact.norm()))
    mixed = [
        (torch.randn(1, rows, 3, 40) * torch.logspace(-2, 2, 3)[:, None] * size).to(dtype)
        for rows, size in ((70, 1), (130, 3), (130, 9))
    ]
    for pairs in zip(heads.by_head_triton(*mixed), heads.by_head(*mixed)):
        made, exact = (small.double() * scale[:, None, :, None].double() for small, scale in pairs)
        made = torch.where(torch.isclose(made * 2, exact, rtol=0.01), exact, made)
        by_head = (made - exact).norm(dim=(1, 3)) / exact.norm(dim=(1, 3))
        print("by_head", dtype, True, float(by_head.max()))
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
    formed = name in (*choice.FORMED, "feed")
    # Of two widths each. That of the gate gives the sum too, in each of three forms.
    assert len(whole) == (10 if name == "gate_norm_modulate" else 4 if formed else 2)
    assert len(small) == (4 if formed else 0)
    assert max(whole) <= (2e-6 if dtype == "torch.float32" else 6e-3)
    assert all(error <= (5e-3 if dtype == "torch.float32" else 3e-2) for error in small)


@pytest.mark.parametrize(
    ("name", "count"), [("pixels.norm", 3), ("pixels.add", 1), ("pixels.double", 1)]
)
@pytest.mark.parametrize("dtype", ["torch.float32", "torch.bfloat16"])
def test_the_vaes_kernels_do_what_their_twins_do(
    name: str, count: int, dtype: str, interpreted: list[tuple[str, str, bool, float]]
) -> None:
    """The norm with a bias, without one, and without SiLU."""
    found = [error for *of, _, error in interpreted if of == [name, dtype]]
    assert len(found) == count
    assert max(found) <= (2e-6 if dtype == "torch.float32" else 6e-3)


@pytest.mark.parametrize("dtype", ["torch.float32", "torch.bfloat16"])
def test_heads_are_rounded_as_their_twin_does(
    dtype: str, interpreted: list[tuple[str, str, bool, float]]
) -> None:
    """Each by its own scale, but for a few numbers that lie between two."""
    found = [error for *of, _, error in interpreted if of == ["by_head", dtype]]
    assert len(found) == 3
    assert max(found) <= (5e-3 if dtype == "torch.float32" else 3e-2)


@pytest.mark.parametrize("recipe", [precision.ROWS, precision.TENSOR, precision.WEIGHTS])
@torch.inference_mode()
def test_rounding_once_for_all_linears_changes_no_bit(recipe: precision.Recipe) -> None:
    """Queries, keys and values share their e4m3 input; the forward stays what diffusers' is."""
    model = small.transformer(torch.bfloat16)
    precision.hold(model, recipe)
    given, tokens = small.conditioning(torch.bfloat16, 2), small.noise(torch.bfloat16)
    stock = Stock(model).prepare(given, small.TIMES, PLAN)(1, (0,), tokens)
    own = Own(model, attention.default).prepare(given, small.TIMES, PLAN)(1, (0,), tokens)
    assert small.error(own, stock) <= 1e-2


@pytest.mark.parametrize("kind", [linears.RowGemm, linears.TensorGemm])
@torch.inference_mode()
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
    x = torch.randn(2, 9, 48, generator=numbers)
    for linear in (plain, eight, branched, Branched(plain, [pair])):
        fed = Fed.of(x, Need.of(linear))
        assert torch.equal(fed.to(linear), linear(x))
        assert torch.equal(fed.first(4).to(linear), linear(x[:, :4]))
        room = torch.zeros(2, 9, 4, 8)
        fed.put(linear, [room])
        assert torch.equal(room.flatten(2), linear(x))


@pytest.mark.parametrize("kind", [linears.RowGemm, linears.TensorGemm])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_product_is_put_where_it_belongs(
    kind: type[linears.Fp8Linear], dtype: torch.dtype
) -> None:
    """Into some rows of a larger room, at once: nothing is copied."""
    linear = kind(48, 32, bias=dtype, device="cpu")
    precision.fill(linear, torch.randn(32, 48), torch.randn(32))
    fed = Fed.of(torch.randn(1, 16, 48).to(dtype), Need.of(linear))
    room = torch.zeros(1, 20, 4, 8, dtype=dtype)
    fed.put(linear, [room[:, 3:19]])
    exact = fed.to(linear)
    assert torch.equal(room[:, 3:19].flatten(2), exact)
    assert not room[:, :3].any() and not room[:, 19:].any()
    assert isinstance(linear, linears.ByToken) and fed.small is not None and fed.scale is not None
    out = torch.zeros(16, 32, dtype=dtype)
    made = linear.multiply(fed.small, fed.scale, dtype, out)
    assert torch.equal(made, exact[0])
    assert made is out


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


def test_a_kernel_is_tried_a_second_time() -> None:
    """As it is launched from then on, without asking Triton."""
    asked: list[int] = []

    def at_first(*given: Any) -> Fed:
        asked.append(1)
        made = PLAIN.gelu(*given)
        if len(asked) <= len(choice.NEEDS) or made.whole is None:
            return made
        return made._replace(whole=made.whole * 1.03)

    why = choice.complaint("gelu", replace(PLAIN, gelu=at_first), CPU, torch.float32)
    assert why is not None and "error of result 0 is 0.03" in why


def test_a_cpu_takes_the_plain_ones() -> None:
    """`auto` on a CPU tries nothing, and Triton without a card does not run."""
    assert choice.choose("auto", CPU, torch.float32).ops is PLAIN
    assert choice.complaint("gelu", TRITON, CPU, torch.float32) is not None


def launches(need: Need) -> dict[str, Callable[[], object]]:
    """Each launch of a kernel at the real model's size, the rounding to e4m3 if `need` has it."""
    rows, heads, width = 20, 24, 128
    x = torch.empty(1, rows, heads * width, dtype=torch.bfloat16)
    wide = torch.empty(1, rows, 4 * heads * width, dtype=torch.bfloat16)
    mods, turns = torch.empty(2, heads * width, dtype=torch.bfloat16), torch.empty(rows, width // 2)
    by_head = x.view(1, rows, heads, width)
    features = torch.empty(1, 96, 9, 7, dtype=torch.bfloat16).to(memory_format=torch.channels_last)
    bias = mods[0, :96]
    found: dict[str, Callable[[], object]] = {
        "norm_modulate": lambda: TRITON.norm_modulate(x, mods, mods, 5, need),
        "gelu": lambda: TRITON.gelu(wide, need),
        "gate_norm_modulate": lambda: TRITON.gate_norm_modulate(x, x, mods, mods, mods, 5, need),
        "norm_rotate": lambda: TRITON.norm_rotate(by_head, mods[0, :width], turns, turns, by_head),
        "pixels.norm": lambda: FAST.norm(features, bias, bias, True),
        "pixels.add": lambda: FAST.add(features, bias, features),
        "pixels.double": lambda: FAST.double(features),
    }
    if need.small:
        found["feed"] = lambda: TRITON.feed([x], need)
        found["by_head"] = lambda: heads_of.by_head_triton(by_head, by_head, by_head)
    return found


class Compiling:
    """In place of a kernel's launch: what Triton and ptxas make of it for a card of `sm`."""

    def __init__(self, sm: int) -> None:
        self.sm = sm
        self.made = 0

    def run(self, kernel: Any, *args: Any, grid: Any, warmup: bool, **options: Any) -> None:
        """Compile `kernel` for the types of its arguments."""
        from triton.backends.compiler import GPUTarget
        from triton.compiler import ASTSource

        warps = {"num_warps": options.pop("num_warps")}
        given = dict(zip(kernel.arg_names, args, strict=False)) | options
        constant = {p.name for p in kernel.params if p.is_constexpr} | {
            name for name, value in given.items() if value is None
        }
        signature = {
            name: "constexpr" if name in constant else TYPES[getattr(value, "dtype", type(value))]
            for name, value in given.items()
        }
        source = ASTSource(kernel, signature, {name: given[name] for name in constant})
        target = GPUTarget("cuda", self.sm, 32)
        assert triton.compile(source, target=target, options=warps).asm["cubin"]
        self.made += 1


TYPES: dict[Any, str] = {
    torch.bfloat16: "*bf16", torch.float32: "*fp32", torch.float8_e4m3fn: "*fp8e4nv",
    int: "i32", float: "fp32",
}  # fmt: skip


@pytest.mark.parametrize("sm", [80, 86, 89, 90, 120])
def test_kernels_compile_for_every_card(
    sm: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Down to machine code; before SM89 without e4m3, which Triton then has no type for."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    compiling = Compiling(sm)

    def run(kernel: Any, *args: Any, **options: Any) -> None:
        compiling.run(kernel, *args, **options)

    monkeypatch.setattr(triton.runtime.jit.JITFunction, "run", run)
    whole, small = launches(Need(True, False)), launches(Need(True, True))
    if sm >= 89:
        for launch in small.values():
            launch()
        assert compiling.made == 10
        return
    for launch in whole.values():
        launch()
    assert compiling.made == 7
    for name in (*choice.FORMED, "feed"):
        with pytest.raises(triton.CompilationError):
            small[name]()


def test_rows_are_written_as_vectors(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Nothing of 8 or 16 bits by itself: that takes a multiple of the instructions."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    driver = host.driver(lambda *_: None)
    monkeypatch.setattr(triton.runtime.driver, "_active", driver)
    for kernel in [*vars(modulate).values(), *vars(rotate).values(), *vars(gelu).values(),
                   *vars(feed).values(), *vars(heads_of).values()]:  # fmt: skip
        if isinstance(kernel, Kernel):  # Of the module: it must not learn of what no card runs.
            monkeypatch.setattr(kernel, "_compiled", {})
    run, compiled = triton.runtime.jit.JITFunction.run, []

    def kept(*args: Any, **options: Any) -> object:
        compiled.append(run(*args, **options))
        return compiled[-1]

    monkeypatch.setattr(triton.runtime.jit.JITFunction, "run", kept)
    for name, launch in launches(Need(True, True)).items():
        launch()
        stores = re.findall(r"st\.global\S*", compiled[-1].asm["ptx"])
        assert stores, name
        assert not [store for store in stores if re.fullmatch(r"st\.global\.b(8|16)", store)], name


def test_a_launch_is_what_triton_makes_of_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """From the second one on Triton is not asked; what the card's driver is given is the same.

    But for addresses, which it takes as numbers. Others are asked for anew where what was
    compiled is not for them: another type, or an address that 16 does not divide.
    """
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    asked: list[object] = []
    run = triton.runtime.jit.JITFunction.run

    def counted(*args: Any, **options: Any) -> object:
        asked.append(args)
        return run(*args, **options)

    launched: list[tuple[Any, ...]] = []
    monkeypatch.setattr(triton.runtime.jit.JITFunction, "run", counted)
    monkeypatch.setattr(
        triton.runtime.driver,
        "_active",
        # Without what is for Triton's own profiler, which is made for each launch.
        host.driver(lambda *args: launched.append((*args[:6], *args[7:]))),
    )
    # A kernel of its own: the module's must not learn of what no card runs.
    turn = Kernel(rotate._norm_rotate._function.fn, ("count", "apart"))
    monkeypatch.setattr(rotate, "_norm_rotate", turn)
    room, weight = torch.zeros(16 * 32 + 1, dtype=torch.bfloat16), torch.zeros(32).bfloat16()
    x, odd = room[:-1].view(1, 16, 1, 32), room[1:].view(1, 16, 1, 32)
    turns = torch.zeros(16, 16)

    def new(x: Tensor, rows: int, weight: Tensor = weight) -> int:
        before = len(asked)
        TRITON.norm_rotate(x[:, :rows], weight, turns, turns, x[:, :rows])
        return len(asked) - before

    assert [new(x, 5), new(x, 5), new(x, 1), new(x, 16)] == [1, 0, 0, 0]
    first, second, *others = launched
    given = [arg.data_ptr() if isinstance(arg, Tensor) else arg for arg in first]
    assert given == list(second)
    place = given.index(weight.data_ptr())
    assert [one.index(weight.data_ptr()) for one in others] == [place] * 2
    assert [new(odd, 5), new(odd, 5), new(x, 5)] == [1, 1, 0]
    assert launched[-3][4] == launched[-2][4] != launched[-1][4] == first[4]
    assert new(x.float(), 5, weight.float()) == 1


def test_without_e4m3_only_that_is_left_out() -> None:
    """On a card before SM89 the other forms of an operation stay Triton's."""

    def only_whole(*given: Any) -> Fed:
        if given[-1].small:
            raise RuntimeError("fp8e4nv not supported in this architecture")
        return PLAIN.norm_modulate(*given)

    chosen = choice.those_that_run(replace(PLAIN, norm_modulate=only_whole), CPU, torch.bfloat16)
    assert set(chosen.refused) == {"norm_modulate to e4m3"}
    x, mods = torch.randn(1, 4, 16), torch.randn(1, 16)
    for need in choice.NEEDS:
        made = chosen.ops.norm_modulate(x, mods, mods, 4, need)
        assert (made.whole is not None, made.small is not None) == need
