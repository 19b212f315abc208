"""The comparison of ways to load weights runs, small and on the processor."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.bench import loading
from tests.weights.files import CONFIG


@pytest.fixture
def case(tmp_path: Path) -> loading.Case:
    """A tiny transformer's file, with RoPE axes that fit its heads."""
    config = {**CONFIG, "axes_dims_rope": [2, 2, 4]}
    found = loading.Case(tmp_path / "x.safetensors", config, torch.device("cpu"))
    loading.build(found.file, found.config)
    return found


def test_all_ways_load_the_same(case: loading.Case) -> None:
    """Every way ends with the same bytes, and ratios are to the predecessor's."""
    figures = loading.compare(case, rounds=1, run=loading.measure)
    assert figures["predecessor"]["of_predecessor"] == 1
    assert {way: figures[way]["s"] > 0 for way in loading.WAYS} == dict.fromkeys(loading.WAYS, True)


def test_a_difference_would_be_seen(case: loading.Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """One byte in another place is another sum."""

    def spoilt(case: loading.Case, model: torch.nn.Module) -> None:
        loading.ours(case, model)
        flat = next(model.parameters()).data.view(-1).view(torch.uint8)
        flat[0], flat[1] = 3, 5

    monkeypatch.setitem(loading.WAYS, "ours", spoilt)
    with pytest.raises(RuntimeError, match="not load the same"):
        loading.compare(case, rounds=1, run=loading.measure)
