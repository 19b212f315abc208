"""The random model's files are what safetensors reads, with numbers that a forward survives."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file

from tests.bench import random_model

SHAPES = {
    "a.weight": (30, 40), "norm.weight": (7,), "a.bias": (40,), "b.weight": (50, 100),
    "x.lora_down.weight": (64, 9), "x.alpha": (), "c.weight": (30, 40),
}  # fmt: skip


def test_every_number_is_there(tmp_path: Path) -> None:
    """Matrices out of the pool, also those larger than it; norms 1, biases 0, alpha the rank."""
    pool = (torch.randn(1001) * 0.02).bfloat16()
    random_model.write(tmp_path / "x.safetensors", SHAPES, pool)
    found = load_file(tmp_path / "x.safetensors")
    assert {name: tuple(tensor.shape) for name, tensor in found.items()} == SHAPES
    assert found["norm.weight"].eq(1).all() and found["a.bias"].eq(0).all()
    assert found["x.alpha"] == random_model.RANK
    for name in ("a.weight", "b.weight", "c.weight", "x.lora_down.weight"):
        assert 0.01 < found[name].float().std() < 0.03
    assert not torch.equal(found["a.weight"], found["c.weight"])
