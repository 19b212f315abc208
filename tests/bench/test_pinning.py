"""The comparison of ways to wait in the host's memory: each holds what the file does."""

from pathlib import Path

import pytest

from tests.bench import pinning


@pytest.mark.parametrize("way", pinning.WAYS)
def test_each_way_reads_what_the_file_holds(way: str, tmp_path: Path) -> None:
    pinning.build(tmp_path / "blocks", 5000)
    figures = pinning.measure(way, tmp_path / "blocks", 5000)
    assert figures["last_copy_right"] and figures["gb_s"] >= 0
