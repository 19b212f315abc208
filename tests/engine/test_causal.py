"""Causal references: each picture looks at nothing but itself, so computing it once is exact."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.models.transformers import transformer_qwenimage
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from tests.engine import random_transformer as small
from tests.engine.support import (
    PICTURES,
    Told,
    encoded,
    picture,
    reference,
    resolved,
    stopped,
)
from vellumd import errors, memory_plan
from vellumd.engine import attention
from vellumd.engine.model import Model
from vellumd.engine.plan import Plan
from vellumd.engine.rows import BOTH, ONE
from vellumd.engine.run import Run
from vellumd.engine.tiers import Forwards
from vellumd.engine.transformer import Conditioning, Own, Stock
from vellumd.settings import EngineSettings
from vellumd.weights.model import CAUSAL, open_model

TIMES = torch.tensor([1000.0, 700.0, 700.0, 300.0])
STEPS = range(len(TIMES))


class Recorded:
    """An attention that notes the keys and values that it is given."""

    def __init__(self) -> None:
        self.seen: list[tuple[Tensor, Tensor]] = []

    def __call__(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        self.seen.append((key.clone(), value.clone()))
        return attention.default(query, key, value)


def noise(step: int) -> Tensor:
    """Another target at each step."""
    return small.noise(torch.float32, seed=20 + step)


@pytest.fixture
def masked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Tensor, Tensor]]:
    """Diffusers' attention, in which a picture's rows look at no others; what it was given."""
    seen: list[tuple[Tensor, Tensor]] = []

    def attend(query: Tensor, key: Tensor, value: Tensor, **_: Any) -> Tensor:
        rows = [height * width for _, height, width in small.SHAPES[:3]]
        text = query.shape[1] - sum(rows)
        owner = torch.repeat_interleave(torch.arange(3), torch.tensor([text + rows[0], *rows[1:]]))
        mask = (owner[:, None] == 0) | (owner[:, None] == owner[None])
        seen.append((key[:, text + rows[0] :].clone(), value[:, text + rows[0] :].clone()))
        q, k, v = (x.transpose(1, 2) for x in (query, key, value))
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2)

    monkeypatch.setattr(transformer_qwenimage, "dispatch_attention_fn", attend)
    return seen


@torch.inference_mode()
def test_as_the_masked_model(masked: list[tuple[Tensor, Tensor]]) -> None:
    """What diffusers' model gives whose references see themselves alone; there too their keys
    and values are the same bits at each step, whatever the time and the target."""
    model, given = small.transformer(torch.float32), small.conditioning(torch.float32, 2)
    full = Plan.full(len(TIMES))
    exact = Stock(model).prepare(given, TIMES, full)
    own = Own(model, attention.default, causal=True).prepare(given, TIMES, full)
    for prompt in (0, 1):
        masked.clear()
        for step in STEPS:
            expected = exact(step, (prompt,), noise(step))
            assert small.error(own(step, (prompt,), noise(step)), expected) <= 1e-6
        first, *others = (masked[k : k + 3] for k in range(0, len(masked), 3))
        assert len(others) == len(TIMES) - 1
        for other in others:
            for pairs in zip(first, other, strict=True):
                assert all(torch.equal(a, b) for a, b in zip(*pairs, strict=True))


def velocities(own: Own, given: Conditioning, plan: Plan) -> Iterator[Tensor]:
    """Those of all steps and both prompts."""
    velocity = own.prepare(given, TIMES, plan)
    for step in STEPS:
        for prompt in (0, 1):
            yield velocity(step, (prompt,), noise(step))


@pytest.mark.parametrize("references", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.inference_mode()
def test_once_is_always(references: int, dtype: torch.dtype) -> None:
    """To the bit: used again from the first step on, or computed anew in each."""
    given = small.conditioning(dtype, references)
    own = Own(small.transformer(dtype), attention.default, causal=True)
    full = Plan.full(len(TIMES))
    anew = list(velocities(own, given, full)) if dtype == torch.float32 else None
    velocity = own.prepare(given, TIMES, replace(full, fresh=frozenset({0})))
    again = own.prepare(given, TIMES, full)
    for step in STEPS:
        for prompt in (1, 0):
            target = noise(step).to(dtype)
            made = velocity(step, (prompt,), target)
            assert torch.equal(made, again(step, (prompt,), target))
            assert anew is None or torch.equal(made, anew[2 * step + prompt])


@torch.inference_mode()
def test_keys_and_values_know_no_step() -> None:
    """Nor the target, nor the prompt: the same bits in every block; each picture's own too."""
    given, recorded = small.conditioning(torch.float32, 2), Recorded()
    own = Own(small.transformer(torch.float32), recorded, causal=True)
    velocity = own.prepare(given, TIMES, Plan.full(len(TIMES)))
    for step in STEPS:
        velocity(step, BOTH, noise(step))
    rows = sum(height * width for _, height, width in small.SHAPES[1:3])
    # Those of all rows; a picture alone is shorter. The prompt's text is before its pictures,
    # the negative one's behind them.
    whole = [pair for pair in recorded.seen if pair[0].shape[1] > rows]
    first = [(key[:, -rows:], value[:, -rows:]) for key, value in whole[::2]]
    end = small.TARGET + rows
    other = [
        (key[:, small.TARGET : end], value[:, small.TARGET : end]) for key, value in whole[1::2]
    ]
    layers = 3
    assert len(first) == len(other) == layers * len(TIMES)
    for ends in (first, other):
        for number, pair in enumerate(ends):
            assert all(map(torch.equal, pair, first[number % layers]))


@torch.inference_mode()
def test_pictures_do_not_see_each_other() -> None:
    """The keys of a picture are the same beside another one; of a bidirectional model not."""
    model = small.transformer(torch.float32)
    rows = [height * width for _, height, width in small.SHAPES[1:3]]
    ends = {}
    for causal in (True, False):
        for seed in (4, 5):
            given = small.conditioning(torch.float32, 2)
            other = torch.randn((1, rows[1], 64), generator=torch.Generator().manual_seed(seed))
            given = replace(given, references=torch.cat([given.references[:, : rows[0]], other], 1))
            recorded = Recorded()
            Own(model, recorded, causal=causal).prepare(given, TIMES, Plan.full(4))(
                0, ONE, noise(0)
            )
            key = recorded.seen[-1][0]  # the last block's
            ends[causal, seed] = key[:, -sum(rows) : -rows[1]]
    assert torch.equal(ends[True, 4], ends[True, 5])
    assert not torch.equal(ends[False, 4], ends[False, 5])


def causal(model: Model, room: int | None = None, **settings: Any) -> Model:
    """The demo as if it had been trained so, with `room` for keys and values."""
    other = copy.copy(model)
    other.settings = EngineSettings(**settings)
    other.parts = replace(model.parts, model=replace(model.parts.model, causal=True))
    other.plan = memory_plan.Plan(room=room)
    other.forwards = Forwards.of(other.parts, other.settings)
    return other


def paint(model: Model, folder: Path, told: Told | None = None, **fields: Any) -> bytes:
    files = [folder / f"{number}.png" for number in (1, 2)]
    for path, data in zip(files, PICTURES, strict=True):
        path.write_bytes(data)
    edit = resolved(
        [reference(data) for data in PICTURES], steps=4, true_cfg_scale=2.0, **fields
    )  # fmt: skip
    return next(Run(model, edit, told or Told(), lambda: False).pictures(files)).tobytes()


def test_an_edit_computes_its_pictures_once(model: Model, tmp_path: Path) -> None:
    """In every tier; without room anew in each step, with the same bytes and no warning."""
    roomy, tight = causal(model), causal(model, room=0)
    told, looks = Told(), []
    for number, other in enumerate((roomy, tight)):
        looks.append(0)
        blocks = other.forwards.exact.blocks

        def count(_: object, args: tuple[Any, ...], number: int = number) -> None:
            looks[number] += bool(args[-1])

        handle = blocks[0].register_forward_pre_hook(count)
        made = paint(other, tmp_path, told)
        handle.remove()
        assert made == paint(other, tmp_path, told, tier="turbo")
        assert made == paint(roomy, tmp_path)
    assert looks == [1, 4] and told.warnings == []  # four steps, both prompts at once
    assert made != paint(model, tmp_path)


def test_only_turbo_rounds_what_is_kept(model: Model, tmp_path: Path) -> None:
    """However keys and values are to be kept there, other tiers are exact."""
    rounded = causal(model, turbo_kv="int8")
    exact = paint(causal(model), tmp_path)
    assert paint(rounded, tmp_path) == exact
    assert paint(rounded, tmp_path, tier="turbo") != exact


@pytest.mark.parametrize("after", [2, 13])
@pytest.mark.parametrize("how", ["cancel", "error"])
def test_nothing_of_an_edit_passes_on(model: Model, tmp_path: Path, after: int, how: str) -> None:
    """Cancelled or failed, while pictures are looked at or later."""
    own = causal(model)
    expected = paint(own, tmp_path)
    file = tmp_path / "other.png"
    file.write_bytes(encoded(picture(60, 80, 9)))
    edit = resolved([reference(file.read_bytes())], steps=4, true_cfg_scale=3.0)
    with (
        stopped(own.forwards.exact.blocks, after, how) as stop,
        pytest.raises((errors.Cancelled, ZeroDivisionError)),
    ):
        next(Run(own, edit, Told(), stop).pictures([file]))
    assert paint(own, tmp_path) == expected


def test_what_says_that_a_model_is_causal(demo: Path, tmp_path: Path) -> None:
    """Its class in config.json, or the user; that references are at time zero follows."""
    assert not open_model(demo).causal
    said = open_model(demo, zero_cond_t=False, causal=True)
    assert (said.causal, said.zero_cond_t, said.told_by) == (True, True, "causal")
    folder = Path(shutil.copytree(demo, tmp_path / "model", symlinks=True))
    file = folder / "transformer" / "config.json"
    config = {**json.loads(file.read_text()), "_class_name": CAUSAL, "zero_cond_t": False}
    file.write_text(json.dumps(config))
    assert open_model(folder).causal and open_model(folder).zero_cond_t
    assert not open_model(folder, zero_cond_t=True, causal=False).causal


def test_diffusers_forward_is_refused(model: Model) -> None:
    """It would make worse edits of such a model, silently."""
    with pytest.raises(errors.RecipeUnsupported, match="causal"):
        causal(model, forward="stock")
