"""The world's painter with torch's arrays."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from vellumd.demo import world
from vellumd.demo.painter import Painter


@pytest.mark.parametrize("kind", world.KINDS)
def test_torch_paints_what_numpy_paints(kind: str) -> None:
    """Training and judge see the same pixels."""
    edits = world.draw(kind, 8, np.random.default_rng(0))
    there = Painter(torch.as_tensor)(edits.target).numpy()
    assert np.abs(there - Painter()(edits.target)).max() < 1e-5
