"""Plans: which steps compute references anew and which are guided; what reuse gives."""

from __future__ import annotations

import math
import random
from dataclasses import replace

import pytest
import torch
from diffusers.models.transformers import transformer_qwenimage
from torch import Tensor

from tests.engine import random_transformer as small
from vellumd.engine import attention, precision
from vellumd.engine.linears import TINY
from vellumd.engine.lora import Branched, Pair
from vellumd.engine.plan import Plan
from vellumd.engine.rooms import Rounded
from vellumd.engine.rows import BOTH, ONE
from vellumd.engine.transformer import Conditioning, Own, Stock
from vellumd.settings import EngineSettings

TIMES = torch.tensor([1000.0, 600.0, 600.0, 300.0])


@pytest.mark.parametrize(
    ("plan", "fresh", "guided"),
    [
        (Plan.full(4), {0, 1, 2, 3}, {0, 1, 2, 3}),
        (Plan.of(8, every=2), {0, 2, 4, 6}, set(range(8))),
        (Plan.of(5, every=3), {0, 3}, set(range(5))),
        (Plan.of(1, every=2), {0}, {0}),
        (Plan.of(4, every=9), {0}, {0, 1, 2, 3}),
        (Plan.of(8, guided=(0.25, 0.75)), set(range(8)), {2, 3, 4, 5}),
        (Plan.of(3, guided=(0.5, 1)), {0, 1, 2}, {1, 2}),
        (Plan.of(2, guided=(0, 0)), {0, 1}, set()),
    ],
)
def test_shares_of_steps(plan: Plan, fresh: set[int], guided: set[int]) -> None:
    """Every so-many-th step is fresh; shares give whole steps, more rather than fewer."""
    assert (plan.fresh, plan.guided) == (fresh, guided)
    assert plan.reuses == (len(fresh) < plan.steps)
    assert plan.forwards(1) == plan.steps
    assert plan.forwards(2) == plan.steps + len(guided)


@pytest.mark.parametrize("shares", [(0.8, 0.2), (-0.1, 1), (0, 1.1)])
def test_shares_that_guide_nothing_are_refused(shares: tuple[float, float]) -> None:
    """At the start: edits would be worse, and nobody told."""
    with pytest.raises(ValueError, match="turbo_guided"):
        EngineSettings(turbo_guided=shares)
    assert EngineSettings(turbo_guided=(0, 0)).turbo_guided == (0, 0)


@pytest.mark.parametrize("zero_cond_t", [True, False])
@torch.inference_mode()
def test_reuse_is_exact_where_nothing_has_changed(zero_cond_t: bool) -> None:
    """At the same time, target and prompt, kept keys and values are those of a full step."""
    model = small.transformer(torch.float32, zero_cond_t=zero_cond_t)
    given, tokens = small.conditioning(torch.float32, 2), small.noise(torch.float32)
    own, full = Own(model, attention.default), Plan.full(len(TIMES))
    exact = own.prepare(given, TIMES, full)
    turbo = own.prepare(given, TIMES, replace(full, fresh=frozenset({1, 3})))
    for prompt in (0, 1):
        # Step 0 was not to be fresh, but there is nothing to use again yet.
        first = small.noise(torch.float32, seed=8)
        assert torch.equal(turbo(0, (prompt,), first), exact(0, (prompt,), first))
        assert torch.equal(turbo(1, (prompt,), tokens), exact(1, (prompt,), tokens))
    for prompts in ((1,), ONE, BOTH):  # each prompt has its own
        assert small.error(turbo(2, prompts, tokens), exact(2, prompts, tokens)) <= 1e-6
    other = small.noise(torch.float32, seed=9)
    assert small.error(turbo(2, ONE, other), exact(2, ONE, other)) > 1e-3
    assert torch.equal(turbo(3, BOTH, other), exact(3, BOTH, other))


class Standing:
    """Diffusers' attention, in which the references' keys and values stand still if wanted.

    Each prompt and block has its own, those of the last forward in which they did not.
    """

    def __init__(self, references: int) -> None:
        self._references = references
        self._kept: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}
        self._block = self._prompt = 0
        self._still = False

    def begin(self, prompt: int, *, still: bool) -> None:
        """A forward comes."""
        self._prompt, self._still, self._block = prompt, still, 0

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, **_: object) -> Tensor:
        mine, rows = (self._prompt, self._block), slice(key.shape[1] - self._references, None)
        if self._still:
            key, value = key.clone(), value.clone()
            key[:, rows], value[:, rows] = self._kept[mine]
        else:
            self._kept[mine] = key[:, rows].clone(), value[:, rows].clone()
        self._block += 1
        return attention.default(query, key, value)


@pytest.mark.parametrize("seed", range(12))
@torch.inference_mode()
def test_any_edit_is_diffusers_with_references_that_stand_still(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the sizes, prompts, LoRAs, steps, plan and interval of guidance."""
    chance, numbers = random.Random(seed), torch.Generator().manual_seed(seed)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=numbers)

    model = small.transformer(torch.float32, zero_cond_t=seed % 3 > 0, layers=chance.choice([1, 3]))
    for name, linear in list(precision.small_linears(model)):
        if seed % 2 and chance.random() < 0.5:
            pair = Pair(drawn(2, linear.in_features) / 9, drawn(linear.out_features, 2), 0.3)
            precision.put(model, name, Branched(linear, [pair]))
    shapes = [(1, chance.randint(1, 9), chance.randint(1, 9)) for _ in range(2 + seed % 3)]
    target, *others = map(math.prod, shapes)
    texts = [drawn(1, chance.choice([1, 2, 33, 120]), 64) for _ in range(2)]
    guided = seed % 4 > 0
    given = Conditioning(texts[0], texts[1] if guided else None, drawn(1, sum(others), 64), shapes)
    share = chance.choice([(0.0, 1.0), (0.0, 0.5), (0.25, 0.75), (0.5, 1.0)])
    steps = 1 + seed % 7
    plan = Plan.of(steps, chance.randint(1, 4), share)
    times = torch.linspace(1000, 300, steps)
    monkeypatch.setattr(
        transformer_qwenimage, "dispatch_attention_fn", still := Standing(sum(others))
    )
    exact = Stock(model).prepare(given, times, plan)
    own, seen = Own(model, attention.default).prepare(given, times, plan), set[int]()
    for step in range(steps):
        prompts, tokens = BOTH if guided and step in plan.guided else ONE, drawn(1, target, 64)
        again = step not in plan.fresh and seen.issuperset(prompts)
        for made, prompt in zip(own(step, prompts, tokens), prompts, strict=True):
            still.begin(prompt, still=again)
            assert small.error(made, exact(step, (prompt,), tokens)[0]) <= 2e-6
        seen.update(prompts)


@torch.inference_mode()
def test_a_prompt_that_comes_later_finds_nothing_to_use() -> None:
    """The first step that is guided computes the references anew, for both at once."""
    given, tokens = small.conditioning(torch.float32, 2), small.noise(torch.float32)
    own, full = Own(small.transformer(torch.float32), attention.default), Plan.full(len(TIMES))
    exact = own.prepare(given, TIMES, full)
    turbo = own.prepare(given, TIMES, replace(full, fresh=frozenset({0})))
    turbo(0, ONE, small.noise(torch.float32, seed=8))
    assert torch.equal(turbo(1, BOTH, tokens), exact(1, BOTH, tokens))
    # What it has left is what step 2, of the same time, would compute.
    assert small.error(turbo(2, BOTH, tokens), exact(2, BOTH, tokens)) <= 1e-6


@torch.inference_mode()
def test_what_attends_to_references_that_are_used_again() -> None:
    """The kernel for such steps does in each of their blocks, and in no fresh step's."""
    asked: list[str] = []

    def telling(name: str) -> attention.Attention:
        def attend(*given: Tensor) -> Tensor:
            asked.append(name)
            return attention.default(*given)

        return attend

    model, tokens = small.transformer(torch.float32, layers=2), small.noise(torch.float32)
    own = Own(model, telling("anew"), again=telling("again"))
    turbo = own.prepare(small.conditioning(torch.float32, 1), TIMES, Plan.of(4, every=2))
    for step in range(4):
        turbo(step, BOTH, tokens)
    assert asked == (["anew"] * 4 + ["again"] * 4) * 2


@torch.inference_mode()
def test_a_reusing_step_runs_no_reference() -> None:
    """The picture stream of such a step has the target's rows alone."""
    own = Own(small.transformer(torch.float32), attention.default)
    rows: list[int] = []
    own.blocks[0].register_forward_pre_hook(lambda _, args: rows.append(args[0].rows.shape[1]))
    given = small.conditioning(torch.float32, 1, guided=False)
    turbo = own.prepare(given, TIMES, replace(Plan.full(4), fresh=frozenset({0, 3})))
    for step in range(4):
        turbo(step, ONE, small.noise(torch.float32))
    whole = small.TARGET + given.references.shape[1]
    assert rows == [whole, small.TARGET, small.TARGET, whole]


def test_the_largest_number_of_a_head_stays_the_largest() -> None:
    """For each that bfloat16 has; where a scale was rounded down it becomes 128, int8's -128."""
    largest = torch.arange(1, 0x7F80, dtype=torch.int16).view(torch.bfloat16)
    largest = largest[largest >= TINY]
    made = Rounded.of(torch.stack([largest, -largest], dim=-1)[None, :, None]).small[0, :, 0]
    assert set(made[:, 0].tolist()) == {126, 127}
    assert torch.equal(made[:, 1], -made[:, 0])


@torch.inference_mode()
def test_keys_and_values_as_int8() -> None:
    """Each head of a row has its own scale, so small ones keep their precision; a step that
    uses such keys and values is off by their rounding alone."""
    sizes = torch.logspace(-3, 3, 4)[:, None] * torch.logspace(-2, 2, 60)[:, None, None]
    rows = torch.randn(1, 60, 4, 128, generator=torch.Generator().manual_seed(1)) * sizes
    rows[0, 7] = 0
    again = torch.empty_like(rows)
    Rounded.of(rows).into(again)
    errors = (again - rows).norm(dim=-1) / rows.norm(dim=-1).clamp(min=1e-9)
    assert errors.mean() < 0.007 and errors.max() < 0.011
    assert not again[0, 7].any()
    model = small.transformer(torch.float32)
    given, tokens = small.conditioning(torch.float32, 2), small.noise(torch.float32)
    own, full = Own(model, attention.default), Plan.full(len(TIMES))
    turbo = own.prepare(given, TIMES, replace(full, fresh=frozenset({1}), kept="int8"))
    whole = own.prepare(given, TIMES, replace(full, fresh=frozenset({1})))
    for prompts in (ONE, (1,)):
        assert torch.equal(turbo(1, prompts, tokens), whole(1, prompts, tokens))
    for prompts in ((1,), ONE, BOTH):
        assert 1e-5 < small.error(turbo(2, prompts, tokens), whole(2, prompts, tokens)) < 0.005
