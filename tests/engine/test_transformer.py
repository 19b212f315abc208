"""Our forward against diffusers', block by block and whole."""

from __future__ import annotations

from collections import Counter
from dataclasses import fields, replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.utils import counters
from torch.utils._python_dispatch import TorchDispatchMode

from tests.engine import random_transformer as small
from vellumd.engine import attention, precision, schedule
from vellumd.engine.block import Streams, called
from vellumd.engine.denoise import denoise
from vellumd.engine.kernels import choice
from vellumd.engine.modulation import CHUNK, Modulation, modulate
from vellumd.engine.plan import Plan
from vellumd.engine.residual import Residual
from vellumd.engine.rows import BOTH, ONE
from vellumd.engine.transformer import Inputs, Own, Stock, Velocity

BOUND = {torch.float32: 1e-6, torch.bfloat16: 1e-2}
"""Relative error of a whole forward: our last block multiplies fewer rows at once, and
bfloat16 has 8 bits."""

CPU = torch.device("cpu")
PLAN = Plan.full(len(small.TIMES))
OPS = [field.name for field in fields(choice.Ops)]

dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
zero_cond_ts = pytest.mark.parametrize("zero_cond_t", [True, False], ids=["zero", "no_zero"])


def prepared(model: Any, *given: Any) -> Velocity:
    return Own(model, attention.default).prepare(*given, PLAN)


@dtypes
@zero_cond_ts
@pytest.mark.parametrize("references", [1, 2, 3])
@torch.inference_mode()
def test_each_block_is_the_stock_block(
    dtype: torch.dtype, zero_cond_t: bool, references: int
) -> None:
    """Given the same rows, every block gives the same bits; the last one, the target's."""
    model = small.transformer(dtype, zero_cond_t=zero_cond_t)
    given = small.conditioning(dtype, references)
    seen: list[tuple[Tensor, ...]] = []
    for block in model.transformer_blocks:
        block.register_forward_hook(
            lambda _module, _args, given, output: seen.append(
                tuple(
                    rows.clone()
                    for rows in (given["hidden_states"], given["encoder_hidden_states"], *output)
                )
            ),
            with_kwargs=True,
        )
    Stock(model).prepare(given, small.TIMES, PLAN)(1, ONE, small.noise(dtype))
    (mods,) = modulate(model, small.TIMES[1:2].to(dtype) / 1000)
    ours = Own(model, attention.default).blocks
    inputs = Inputs.of(model, replace(given, negative=None))
    room, ropes = inputs.rooms.enter(0, ONE), inputs.ropes_of(ONE)
    for block, block_mods, (image, text, next_text, next_image) in zip(
        ours, mods.blocks, seen, strict=True
    ):
        streams, pictures = Streams.of(block.stock), Residual(image, small.TARGET)
        words = Residual(text, text.shape[1])
        block(pictures, words, streams, block_mods, ropes, room, ONE)
        made = pictures.whole()
        if block is ours[-1]:
            assert made.shape[1] == small.TARGET
            assert small.error(made, next_image[:, : small.TARGET]) <= BOUND[dtype]
        else:
            assert torch.equal(made, next_image)
            assert torch.equal(words.whole(), next_text)


@dtypes
@zero_cond_ts
@pytest.mark.parametrize("references", [1, 3])
@torch.inference_mode()
def test_the_whole_forward_is_the_stock_one(
    dtype: torch.dtype, zero_cond_t: bool, references: int
) -> None:
    """At every step, for each prompt alone and for both at once, as guidance runs them."""
    model = small.transformer(dtype, zero_cond_t=zero_cond_t)
    given = small.conditioning(dtype, references)
    stock = Stock(model).prepare(given, small.TIMES, PLAN)
    own = prepared(model, given, small.TIMES)
    for step in range(len(small.TIMES)):
        tokens = small.noise(dtype, seed=step)
        for prompts in (ONE, BOTH, (1,)):
            made, exact = own(step, prompts, tokens), stock(step, prompts, tokens)
            for one, other in zip(made, exact, strict=True):
                assert small.error(one, other) <= BOUND[dtype]


@torch.inference_mode()
def test_no_pass_over_the_rows_only_adds() -> None:
    """What an MLP made is added with the next block's norm; what attention did, with its own."""
    passes: Counter[str] = Counter()

    def counted(name: str) -> Any:
        def run(*given: Any) -> Any:
            passes[name] += 1
            return getattr(choice.PLAIN, name)(*given)

        return run

    model, given = small.transformer(torch.float32, layers=3), small.conditioning(torch.float32, 1)
    ops = replace(choice.PLAIN, **{name: counted(name) for name in OPS})
    Own(model, attention.default, ops).prepare(given, small.TIMES, PLAN)(
        0, ONE, small.noise(torch.float32)
    )
    # Pictures and text of the first block; of two more, and past attention, but for the last text.
    assert passes["norm_modulate"] == 2
    assert passes["gate_norm_modulate"] == 4 + 5


@torch.inference_mode()
def test_a_forward_leaves_nothing_behind() -> None:
    """Whatever ran before, a step gives the same bits: what is computed once stays as it is."""
    model, given = small.transformer(torch.float32), small.conditioning(torch.float32, 2)
    own = prepared(model, given, small.TIMES)
    first = own(0, ONE, small.noise(torch.float32))
    own(2, (1,), small.noise(torch.float32, seed=9))
    assert torch.equal(own(0, ONE, small.noise(torch.float32)), first)


@torch.inference_mode()
def test_what_takes_a_linears_place_is_used() -> None:
    """A quantised linear or a LoRA branch comes after our forward was made."""
    model, given = small.transformer(torch.float32), small.conditioning(torch.float32, 1)
    own = Own(model, attention.default)
    before = own.prepare(given, small.TIMES, PLAN)(0, ONE, small.noise(torch.float32))
    for name in ("img_mlp.net.2", "attn.add_k_proj", "attn.to_out.0", "img_mod.1"):
        home, _, last = name.rpartition(".")
        parent = model.transformer_blocks[0].get_submodule(home)
        linear = getattr(parent, last)
        setattr(parent, last, torch.nn.Sequential(linear, torch.nn.Tanh()))
        after = own.prepare(given, small.TIMES, PLAN)(0, ONE, small.noise(torch.float32))
        assert small.error(after, before) > 1e-3
        setattr(parent, last, linear)


def test_what_hangs_on_a_block_happens() -> None:
    """Around what is done for it; not what wants its arguments, which it is not called with."""
    block, told = torch.nn.Linear(1, 1), list[str]()
    block.register_forward_pre_hook(lambda *_: told.append("before"))
    block.register_forward_hook(lambda *_: told.append("after"))
    block.register_forward_pre_hook(lambda *_: told.append("wrong"), with_kwargs=True)
    block.register_forward_hook(lambda *_: told.append("wrong"), with_kwargs=True)
    with called(block):
        told.append("work")
    assert told == ["before", "work", "after"]


@torch.inference_mode()
def test_modulation_of_a_long_schedule() -> None:
    """Steps beyond a chunk are those of their own times, in any order."""
    model = small.transformer(torch.float32)
    times = torch.linspace(1, 0.05, CHUNK * 2 + 3)
    modulation = Modulation(model, times)
    for step in (0, CHUNK, len(times) - 1, 1):
        (alone,) = modulate(model, times[step : step + 1])
        together = modulation.step(step)
        assert small.error(together.shift, alone.shift) <= 1e-6
        for one, other in zip(together.blocks, alone.blocks, strict=True):
            rows = zip((*one.image, *one.text), (*other.image, *other.text), strict=True)
            for made, exact in rows:
                assert small.error(made, exact) <= 1e-6


@pytest.mark.parametrize(
    ("recipe", "dtype"), [(precision.PLAIN, torch.float32), (precision.ROWS, torch.bfloat16)]
)
@torch.inference_mode()
def test_compiled_blocks_share_what_was_compiled(
    recipe: precision.Recipe, dtype: torch.dtype
) -> None:
    """What is around attention is one graph each, however many blocks, and the same maths.

    Those of the second size are for any.
    """
    model = small.transformer(dtype, layers=4)
    precision.hold(model, recipe)
    plain = Own(model, attention.default)
    torch._dynamo.reset()
    counters.clear()
    fused = Own(model, attention.default).fused(backend="eager")
    for sizes in (1, 2):
        given, tokens = small.conditioning(dtype, references=sizes), small.noise(dtype)
        velocities = (own.prepare(given, small.TIMES, PLAN) for own in (fused, plain))
        made, exact = (velocity(0, ONE, tokens) for velocity in velocities)
        assert small.error(made, exact) <= 1e-6
        # However many blocks: the projections of the first, the last and all between, and the two
        # parts that follow attention, for pictures, texts and the target alone; some of these
        # share one.
        assert counters["stats"]["unique_graphs"] <= 8 * sizes


@torch.inference_mode()
def test_compiled_blocks_take_forwards_of_all_kinds() -> None:
    """One prompt or both, references anew or used again, any size: more graphs than torch allows
    by itself, where a forward would fail.
    """
    model = small.transformer(torch.float32, layers=2)
    plain = Own(model, attention.default)
    torch._dynamo.reset()
    fused = Own(model, attention.default).fused(backend="eager")
    plan, times = Plan.of(2, every=2), small.TIMES[:2]
    for references in (1, 2):
        given = small.conditioning(torch.float32, references)
        for prompts in (ONE, BOTH):
            made, exact = (own.prepare(given, times, plan) for own in (fused, plain))
            for step in range(plan.steps):
                tokens = small.noise(torch.float32, seed=step)
                velocities = (velocity(step, prompts, tokens) for velocity in (made, exact))
                assert small.error(*velocities) <= 1e-6


class NoReading(TorchDispatchMode):
    """Fails where a number is read back from tensors: on a card the host would wait there."""

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        assert function not in READING, function
        return function(*args, **kwargs or {})


READING = {
    torch.ops.aten._local_scalar_dense.default,
    torch.ops.aten.nonzero.default,
    torch.ops.aten.is_nonzero.default,
    torch.ops.aten.masked_select.default,
    torch.ops.aten.equal.default,
}


@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_the_loop_reads_nothing_back(scale: float) -> None:
    """From the first step to the last the host only asks; it never waits for a number."""
    model, given = small.transformer(torch.float32), small.conditioning(torch.float32, 2)
    scheduler = schedule.schedule(schedule.LIGHTNING, "lightning", 4, small.TARGET, CPU)
    with torch.inference_mode(), pytest.raises(AssertionError), NoReading():
        bool(torch.ones(1) > 0)
    with NoReading():
        denoise(
            Own(model, attention.default), scheduler, small.noise(torch.float32), given, scale,
            Plan.full(4), lambda step, estimate: None,
        )  # fmt: skip
