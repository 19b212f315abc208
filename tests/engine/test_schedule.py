"""The noise schedules, against the figures published with the models."""

from __future__ import annotations

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from vellumd import model_card
from vellumd.engine.schedule import schedule

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
