"""Profiles for cards are settings as the daemon reads them."""

from __future__ import annotations

from pathlib import Path

import pytest

from vellumd import catalogue, memory_plan, sources
from vellumd.memory_plan import GB

PROFILES = sorted((Path(__file__).parents[2] / "config" / "profiles").glob("*.toml"))
HOMES = {
    "12gb": (32, 42, "streamed"), "h100": (80, 0, "resident"), "rtx3090": (24, 0, "streamed"),
    "rtx4090": (24, 0, "streamed"), "rtx5090": (32, 0, "streamed"),
}  # fmt: skip
"""What the files say: gigabytes of the host, blocks streamed, the encoder's home."""


@pytest.mark.parametrize("file", PROFILES, ids=lambda file: file.stem)
def test_a_profile_is_read_whole(file: Path, tmp_path: Path) -> None:
    """Each key is one that there is, and none is a default that says nothing."""
    loaded = sources.load([], config=file, cwd=tmp_path, environ={})
    engine = loaded.settings.engine
    assert engine.model_fields_set, "the profile says nothing"
    budget = engine.vram_budget_gb
    assert budget is None or 6 <= budget <= 32


@pytest.mark.parametrize("file", PROFILES, ids=lambda file: file.stem)
def test_2511_runs_as_a_profile_says(file: Path, tmp_path: Path) -> None:
    """Within its budget, with Lightning beside the weights, as after `vellumd fetch`."""
    engine = sources.load([], config=file, cwd=tmp_path, environ={}).settings.engine
    sizes = catalogue.CATALOGUE["qwen-image-edit-2511"].sizes
    host, streamed, encoder = HOMES[file.stem]
    assert sizes is not None
    vram, ram = int((engine.vram_budget_gb or 80) * GB), int((host - 6) * GB)  # 6: the system's
    plan = memory_plan.plan(sizes, memory_plan.Machine(vram, ram))
    assert (plan.fits, plan.streamed, plan.encoder) == (True, streamed, encoder)


def test_there_is_one_for_each_kind_of_card() -> None:
    """The cards that the documentation names."""
    assert {file.stem for file in PROFILES} == {"12gb", "h100", "rtx3090", "rtx4090", "rtx5090"}
