"""The noise schedules, against the figures published with the models."""

from __future__ import annotations

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from torch import Tensor

from vellumd import model_card
from vellumd.engine.denoise import denoise, watched
from vellumd.engine.plan import Plan
from vellumd.engine.schedule import schedule
from vellumd.engine.transformer import Conditioning, Velocity

CPU = torch.device("cpu")
BASE = {
    **FlowMatchEulerDiscreteScheduler.load_config(model_card.DEMO_FOLDER / "scheduler"),
    "base_shift": 0.5,
    "max_shift": 0.9,
    "shift_terminal": 0.02,
    "stochastic_sampling": False,
}
"""The real model's, whose shift depends on the size."""


@pytest.mark.parametrize("tokens", [64, 4096, 9000])
@pytest.mark.parametrize(
    ("steps", "sigmas"),
    [
        (4, [1, 0.9, 0.75, 0.5, 0]),
        (8, [1, 0.9545, 0.9, 0.8333, 0.75, 0.6429, 0.5, 0.3, 0]),
    ],
)
def test_lightning_sigmas(tokens: int, steps: int, sigmas: list[float]) -> None:
    """Lightning's shift is 3 at every size and its last step starts at 0.3 (of 8)."""
    made = schedule(BASE, "lightning", steps, tokens, CPU)
    assert made.sigmas.tolist() == pytest.approx(sigmas, abs=1e-4)


def test_base_schedule_ends_at_its_terminal() -> None:
    """The model's own schedule goes from 1 down to shift_terminal, and depends on size."""
    small, large = (schedule(BASE, "base", 28, tokens, CPU).sigmas for tokens in (256, 8192))
    assert small[0] == large[0] == 1
    assert small[-2].item() == pytest.approx(0.02, abs=1e-6)
    assert not torch.allclose(small, large)


@pytest.mark.parametrize("kind", ["base", "lightning"])
def test_one_step_is_not_a_number_never(kind: str) -> None:
    """A single step goes from 1 to 0; stretching it to a terminal would be 0/0."""
    assert schedule(BASE, kind, 1, 64, CPU).sigmas.tolist() == [1, 0]  # type: ignore[arg-type]


class Straight:
    """A forward by which `noise` leads straight to `clean`, as an ideal one would."""

    reuses = together = causal = False
    blocks = ()

    def __init__(self, noise: Tensor, clean: Tensor) -> None:
        self._velocity = noise - clean

    def prepare(self, conditioning: Conditioning, times: Tensor, plan: Plan) -> Velocity:
        """See `Forward.prepare`."""
        return lambda step, prompts, tokens: self._velocity.repeat(len(prompts), 1, 1)


@pytest.mark.parametrize("guided", [True, False])
def test_each_step_tells_where_it_leads(guided: bool) -> None:
    """On a straight way each sees its end, which previews show."""
    noise, clean = torch.randn(1, 9, 64), torch.randn(1, 9, 64)
    told: list[Tensor] = []
    made = denoise(
        Straight(noise, clean), schedule(BASE, "base", 5, 4096, CPU), noise,
        Conditioning(noise, noise if guided else None, noise, [(1, 3, 3)]), 3.0, Plan.full(5),
        lambda step, estimate: told.append(estimate),
    )  # fmt: skip
    assert len(told) == 5
    for one in (*told, made):
        torch.testing.assert_close(one, clean, rtol=0, atol=1e-5)


def test_the_host_is_a_block_ahead_of_a_card(monkeypatch: pytest.MonkeyPatch) -> None:
    """A beat after a block tells that the one before is done: so a cancel waits for one."""
    order: list[str] = []

    class Event:
        """A block's end, in the card's order."""

        made = 0

        def record(self, stream: object) -> None:
            Event.made += 1
            self.number = Event.made

        def synchronize(self) -> None:
            order.append(f"block {self.number} is done")

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _: None)
    blocks = [torch.nn.Identity() for _ in range(3)]
    with watched(blocks, torch.device("cuda", 0), lambda: order.append("beat")):
        for block in blocks:
            block(torch.zeros(1))
    assert order == ["beat", "block 1 is done", "beat", "block 2 is done", "beat"]
    blocks[0](torch.zeros(1))
    assert len(order) == 5
