"""How a model would run here, told without loading it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from vellumd.engine import planning, precision
from vellumd.settings import EngineSettings

CPU = torch.device("cpu")


def test_recipe_attention_and_plan() -> None:
    """As a start would choose them; within a budget that is too small the plan says so."""
    found = planning.outlook(EngineSettings(), CPU)
    assert (found["recipe"], found["fits"]) == ("bf16", True)
    assert found["plan"].startswith("transformer resident, encoder resident")
    small = EngineSettings(recipe="fp8-weights", vram_budget_gb=1)
    found = planning.outlook(small, CPU)
    assert (found["recipe"], found["fits"]) == ("fp8-weights", False)
    assert "blocks streamed, encoder streamed, modulation from tables" in found["plan"]


def test_what_does_not_run_is_told_with_why(monkeypatch: pytest.MonkeyPatch) -> None:
    """A card without row-wise products, Triton or FA3 is told what it lacks."""
    choice = precision.Choice(precision.WEIGHTS, {"fp8-rows": "no such GEMM"})
    monkeypatch.setattr(precision, "choose", lambda *_: choice)
    refused = planning.outlook(EngineSettings(), CPU)["refused"]
    assert refused["fp8-rows"] == "no such GEMM"
    assert "fa3" in refused


def test_the_command(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """One JSON object, also where a start would fail."""
    assert planning.main([EngineSettings(artifact_dir=tmp_path).model_dump_json()]) == 0
    assert json.loads(capsys.readouterr().out)["fits"]
    assert planning.main(['{"model": "/nowhere"}']) == 0
    assert "There is no model" in json.loads(capsys.readouterr().out)["error"]
    assert list(tmp_path.iterdir()) == []
