"""Profiles for cards are settings as the daemon reads them."""

from __future__ import annotations

from pathlib import Path

import pytest

from vellumd import sources

PROFILES = sorted((Path(__file__).parents[2] / "config" / "profiles").glob("*.toml"))


@pytest.mark.parametrize("file", PROFILES, ids=lambda file: file.stem)
def test_a_profile_is_read_whole(file: Path, tmp_path: Path) -> None:
    """Each key is one that there is, and none is a default that says nothing."""
    loaded = sources.load([], config=file, cwd=tmp_path, environ={})
    engine = loaded.settings.engine
    assert engine.model_fields_set, "the profile says nothing"
    budget = engine.vram_budget_gb
    assert budget is None or 6 <= budget <= 32


def test_there_is_one_for_each_kind_of_card() -> None:
    """The cards that the documentation names."""
    assert {file.stem for file in PROFILES} == {"12gb", "h100", "rtx3090", "rtx4090", "rtx5090"}
