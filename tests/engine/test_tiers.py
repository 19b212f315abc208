"""Tiers: what each runs, what it is told, and that nothing of an edit passes on."""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch

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
from vellumd.engine import attention, rooms, transformer, trial
from vellumd.engine.content import Store
from vellumd.engine.encode import Encoder
from vellumd.engine.kernels import choice
from vellumd.engine.model import Model
from vellumd.engine.pipeline import QwenEngine
from vellumd.engine.plan import Plan
from vellumd.engine.rooms import Rooms
from vellumd.engine.rows import BOTH, ONE, Rows
from vellumd.engine.run import Run
from vellumd.engine.tiers import Forwards
from vellumd.engine.transformer import Own, Stock
from vellumd.engine.trial import Standby
from vellumd.models import LoraRef
from vellumd.protocol import Init
from vellumd.settings import EngineSettings

STEPS = 4


def run(model: Model, told: Told | None = None, **fields: Any) -> Run:
    wanted = {"steps": STEPS, "true_cfg_scale": 2.0, "tier": "turbo", **fields}
    edit = resolved([reference(data) for data in PICTURES], **wanted)
    return Run(model, edit, told or Told(), wanted.pop("cancelled", lambda: False))


def paint(model: Model, files: list[Path], told: Told | None = None, **fields: Any) -> bytes:
    return next(run(model, told, **fields).pictures(files)).tobytes()


def with_settings(model: Model, **settings: Any) -> Model:
    """`model` as a daemon with these settings would have it."""
    other = copy.copy(model)
    other.settings = EngineSettings(**settings)
    other.standby = Standby()
    other.forwards = Forwards.of(model.parts, other.settings, other.standby)
    return other


@pytest.fixture
def rows(model: Model) -> Iterator[list[int]]:
    """The picture stream's rows in each forward."""
    seen: list[int] = []
    handle = model.forwards.exact.blocks[0].register_forward_pre_hook(
        lambda _, given: seen.append(given[0].rows.shape[1])
    )
    yield seen
    handle.remove()


def test_turbo_computes_references_on_chosen_steps(
    model: Model, files: list[Path], rows: list[int]
) -> None:
    """Every second step for both prompts; the other edits do it on all steps."""
    told = Told()
    turbo = paint(model, files, told)
    assert told.warnings == []
    whole, target = max(rows), min(rows)
    assert rows == [whole, target] * 2
    rows.clear()
    exact = paint(model, files, tier="standard")
    assert rows == [whole] * 4
    assert turbo != exact
    slower = with_settings(model, turbo_every=1)
    assert paint(slower, files) == exact


def test_guidance_between_shares_of_the_steps(model: Model, files: list[Path]) -> None:
    """Steps outside leave out the negative prompt, in turbo alone."""
    guided = with_settings(model, turbo_guided=(0.25, 0.75), turbo_every=1)
    seen: list[tuple[int, ...]] = []
    handle = guided.forwards.exact.blocks[0].register_forward_pre_hook(
        lambda _, given: seen.append(given[6])
    )
    for tier in ("turbo", "standard"):
        paint(guided, files, tier=tier)
    handle.remove()
    assert seen == [ONE, BOTH, BOTH, ONE] + [BOTH] * 4


@pytest.mark.parametrize(
    ("after", "kept"), [(3, "whole"), (7, "whole"), (17, "whole"), (7, "int8"), (17, "int8")]
)
@pytest.mark.parametrize("how", ["cancel", "error"])
def test_nothing_of_turbo_passes_on(
    model: Model, files: list[Path], after: int, kept: str, how: str
) -> None:
    """Cancelled or failed, before or after keys and values are used again: the next edits,
    turbo or not, give the bytes they always give."""
    model = with_settings(model, turbo_kv=kept)
    expected = paint(model, files), paint(model, files, tier="standard")
    edit = resolved(
        [reference(encoded(picture(60, 80, 9)))], steps=STEPS, true_cfg_scale=3.0, tier="turbo"
    )
    other = files[0].with_name("other.png")
    other.write_bytes(encoded(picture(60, 80, 9)))
    with (
        stopped(model.forwards.exact.blocks, after, how) as stop,
        pytest.raises((errors.Cancelled, ZeroDivisionError)),
    ):
        next(Run(model, edit, Told(), stop).pictures([other]))
    assert (paint(model, files), paint(model, files, tier="standard")) == expected


LORAS = (LoraRef(name="lightning-8", scale=0.5),)
EDITS: tuple[dict[str, Any], ...] = (
    {"tier": "standard", "true_cfg_scale": 1.0},
    {"tier": "turbo", "prompt": "a much longer prompt " * 5},
    {"tier": "turbo", "loras": LORAS, "steps": 3},
    {"tier": "standard", "loras": LORAS, "size": "96x64"},
    {"tier": "turbo", "n": 2, "seed": 3, "size": "64x96"},
)
"""What differs in all that could be left behind: references, prompts, sizes, weights, plans."""


def test_edits_in_any_order(model: Model, files: list[Path]) -> None:
    """Whatever came before, whole, cancelled or failed, and whatever of it is still kept."""
    model, order = with_settings(model, turbo_kv="int8"), random.Random(1)
    model.store = Store(200_000)
    model.encoder = Encoder(
        model.parts.processor, model.parts.text_encoder, model.card.prompt_tokens, model.store
    )

    def painted(number: int) -> bytes:
        return paint(model, files, **{"steps": 2, **EDITS[number]})

    def alone(number: int) -> bytes:
        model.store.clear()
        return painted(number)

    numbers = range(len(EDITS))
    expected = [alone(number) for number in numbers]
    assert len(set(expected)) == len(EDITS)
    for number in [order.choice(numbers) for _ in range(12)]:
        how, after = order.choice(["cancel", "error", "whole"]), order.randint(1, 9)
        if how != "whole":
            broken = run(model, **{"steps": 2, **EDITS[order.choice(numbers)]})
            with (
                stopped(broken._forward.blocks, after, how) as broken._cancelled,
                pytest.raises((errors.Cancelled, ZeroDivisionError)),
            ):
                next(broken.pictures(files))
        assert painted(number) == expected[number]
        assert model.store.size <= 200_000


def test_turbo_keeps_what_there_is_room_for(model: Model, files: list[Path]) -> None:
    """Whole if it fits, else as int8, else not at all, and the job says so; one that is forced
    and does not fit is not made either. Two prompts of two pictures of 16 tokens, 5 blocks."""
    exact, whole = paint(model, files, tier="standard"), paint(model, files)
    small = paint(with_settings(model, turbo_kv="int8"), files)
    assert len({exact, whole, small}) == 3
    assert with_settings(model).tiers == ("standard", "turbo")
    size = model.keys_values.needed("int8", 0, 32, 2)
    for room, kind, expected in (
        (size, "auto", small), (size - 1, "auto", exact), (size, "whole", exact),
        (10**9, "auto", whole), (10**9, "int8", small),
    ):  # fmt: skip
        told, other = Told(), with_settings(model, turbo_kv=kind)
        other.plan = memory_plan.Plan(room=room)
        assert paint(other, files, told) == expected
        assert told.warnings == ([] if expected != exact else ["tier_lowered"])
    other.plan = memory_plan.Plan(room=0)
    assert other.tiers == ("standard",)


def test_room_is_asked_for_all_rows(
    model: Model, files: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of the longer prompt among them: what is kept whole is kept of texts too."""
    made: list[Rows] = []

    def watched(rows: Rows, *rest: Any) -> Rooms:
        made.append(rows)
        return rooms.rooms(rows, *rest)

    monkeypatch.setattr(transformer, "rooms", watched)
    for prompts in ({"prompt": "long " * 20}, {"negative_prompt": "long " * 20}):
        other = with_settings(model, turbo_kv="whole")
        asked: list[int] = []
        monkeypatch.setattr(other, "kept", lambda rows, *_, asked=asked, **__: asked.append(rows))
        paint(other, files, **prompts)
        assert asked == [max(made[-1].texts) + made[-1].pictures]
        assert min(made[-1].texts) < max(made[-1].texts)


@pytest.mark.parametrize(
    ("room", "warnings"),
    [
        (None, ["memory_freed", "tier_lowered"]),
        (0, ["tier_lowered", "memory_freed", "vae_tiled"]),
    ],
)
def test_short_of_memory_turbo_becomes_exact(
    model: Model, files: list[Path], room: int | None, warnings: list[str]
) -> None:
    """Kept keys and values go before the VAE works in tiles, and the job says so; where there
    was no room for them from the start, nothing is tried that frees nothing."""
    exact, times = paint(model, files, tier="standard"), 0
    model = with_settings(model)
    model.plan = memory_plan.Plan(room=room)

    def full(*_: object) -> None:
        nonlocal times
        times += 1
        if times <= 2:
            raise torch.OutOfMemoryError("CUDA out of memory.")

    handle = model.forwards.exact.blocks[0].register_forward_pre_hook(full)
    told = Told()
    painted = paint(model, files, told)
    handle.remove()
    assert told.warnings == warnings
    assert painted == exact


def test_which_forward_a_tier_runs(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """Swift and turbo take 8-bit attention where it runs; without it swift is lowered."""
    plain = with_settings(model).forwards
    assert isinstance(plain.exact, Own) and plain.eight_bit is None
    assert plain.attention == ("flash",)
    assert [plain.lowers(tier) for tier in ("standard", "swift", "turbo")] == [False, True, False]
    monkeypatch.setitem(attention.KINDS_8BIT, "fa3-8bit", attention.default)
    small = with_settings(model).forwards
    assert small.attention == ("fa3-8bit", "flash")
    x = torch.randn(1, 5, 2, 8)
    for eight_bit in (small.eight_bit, with_settings(model, compile=True).forwards.eight_bit):
        assert isinstance(eight_bit, Own)
        ((kernel, again),) = {(block.attention, block.again) for block in eight_bit.blocks}
        assert torch.equal(kernel(x, x, x), attention.default(x, x, x))
        assert again is attention.KINDS["flash"] is not kernel
    assert small.of_tier("swift") is small.of_tier("turbo") is small.eight_bit
    assert small.of_tier("standard") is small.exact
    assert not small.lowers("swift")
    for settings in ({"tier": "reference"}, {"attention": "math"}):
        assert with_settings(model, **settings).forwards.eight_bit is None
    stock = with_settings(model, forward="stock").forwards
    assert isinstance(stock.of_tier("turbo"), Stock)
    assert stock.lowers("swift") and stock.lowers("turbo")


def test_the_stock_forward_paints_the_same(model: Model, files: list[Path]) -> None:
    """A daemon with diffusers' forward gives our pictures, one rounding apart at most, and
    lowers turbo."""
    stock = with_settings(model, forward="stock")
    painted = paint(stock, files)
    pairs = zip(painted, paint(model, files, tier="standard"), strict=True)
    assert max(abs(a - b) for a, b in pairs) <= 1
    assert run(with_settings(model, turbo_guided=(0, 0.5))).plan() != Plan.full(STEPS)
    assert run(with_settings(model, forward="stock", turbo_guided=(0, 0.5))).plan() == Plan.full(
        STEPS
    )


def test_a_forced_kernel_that_does_not_run_ends_the_start(demo: Path, tmp_path: Path) -> None:
    """`engine.attention = "fa3"` on a CPU is an error of the start, not of each edit."""
    init = Init(engine="", settings={"attention": "fa3"}, spool=tmp_path, cache=tmp_path)
    with pytest.raises(errors.RecipeUnsupported):
        QwenEngine(init).load(Told())  # type: ignore[arg-type]


@pytest.mark.parametrize("name", [field.name for field in fields(choice.Ops)])
def test_a_kernel_that_fails_after_its_trial(
    model: Model, files: list[Path], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Its plain twin does the work from there on, with the same bits; every edit says so."""
    exact = paint(model, files)
    calls, choose = 0, choice.choose

    def late(*given: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise RuntimeError("Triton Error [CUDA]: out of resource: shared memory")
        return getattr(choice.PLAIN, name)(*given)

    def on_a_card(wanted: str, _: object, *given: Any) -> choice.Choice:
        return choose(wanted, torch.device("cuda"), *given)

    ops = replace(choice.PLAIN, **{name: late})
    monkeypatch.setattr(choice, "those_that_run", lambda *_: choice.Choice(ops, {}))
    monkeypatch.setattr(choice, "choose", on_a_card)
    monkeypatch.setattr(trial, "_is_lost", lambda: False)
    other = with_settings(model)
    for _ in range(2):
        told = Told()
        assert paint(other, files, told) == exact
        assert told.warnings == ["kernel_replaced"]
    assert calls == 3
    assert "out of resource" in other.standby.replaced[name]


@pytest.mark.parametrize(
    ("error", "lost"),
    [
        (torch.OutOfMemoryError("CUDA out of memory."), False),
        (RuntimeError("Triton Error [CUDA]: an illegal memory access was encountered"), True),
    ],
)
def test_what_no_twin_mends(monkeypatch: pytest.MonkeyPatch, error: Exception, lost: bool) -> None:
    """Memory is freed and the edit goes on with the kernel; a lost card ends the process."""
    monkeypatch.setattr(trial, "_is_lost", lambda: lost)
    standby = Standby()
    either = standby.behind("x", Mock(side_effect=[error, 1]), lambda: pytest.fail("the twin"))
    with pytest.raises(RuntimeError):
        either()
    assert either() == 1 and not standby.replaced


def test_wanted_kernels_have_no_twins(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever set `triton` wants it to fail; whoever measures it does too."""
    found = choice.Choice(replace(choice.PLAIN, gelu=lambda *_: 1 / 0), {})
    monkeypatch.setattr(choice, "those_that_run", lambda *_: found)
    cuda = torch.device("cuda")
    assert choice.choose("triton", cuda, torch.bfloat16, Standby()) is found
    assert choice.choose("auto", cuda, torch.bfloat16) is found
    assert choice.choose("auto", cuda, torch.bfloat16, Standby()).ops.gelu is not found.ops.gelu
