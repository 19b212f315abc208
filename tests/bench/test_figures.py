"""Figures in the documentation: each stands in the file of results that its section names."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
FOLDERS = [
    ROOT / folder for folder in ("tests/bench/results/card_h200", "tests/bench/results",
                                 "tests/trust/results")
]  # fmt: skip
PAGES = ["docs/performance.md", "docs/precision.md"]
UNITS = 1, 1000, 1e-3, 5, 100
"""Seconds as milliseconds and the other way, a fifth of a forward, shares as percent."""


def sections() -> Iterator[Any]:
    """Each part of a page whose heading names files of results, with all that it names."""
    for page in PAGES:
        for section in re.split(r"^(?=##)", (ROOT / page).read_text("utf-8"), flags=re.MULTILINE):
            named = re.findall(r"`(?:[\w/]*/)?([\w*-]+\.json)`", section)
            files = [file for name in named for folder in FOLDERS for file in folder.glob(name)]
            if ".json" in section.partition("\n")[0]:
                yield pytest.param(section, files, id=section.partition("\n")[0].strip("# "))


def numbers(found: Any) -> Iterator[float]:
    """All in a result, those in its texts among them."""
    if isinstance(found, dict | list):
        for value in found.values() if isinstance(found, dict) else found:
            yield from numbers(value)
    elif isinstance(found, str):
        yield from map(float, re.findall(r"\d+(?:\.\d+)?", found))
    elif isinstance(found, int | float):
        yield float(found)


def told(section: str) -> Iterator[str]:
    """Numbers in the cells of a section's tables, but for the first ones, which say what of.

    Quotients (2.2x) are derived, and so is what the text says.
    """
    for row in re.findall(r"^\|(?!-)[^|]*\|(.*)\|$", section, re.MULTILINE):
        yield from re.findall(r"(?<![\w.])\d[\d,]*(?:\.\d+)?(?![\w.]*\d|x\b|\w)", row)


@pytest.mark.parametrize(("section", "files"), list(sections()))
def test_every_figure_of_a_table_was_measured(section: str, files: list[Path]) -> None:
    """Rounded to as many places as are told."""
    measured = {n for file in files for n in numbers(json.loads(file.read_bytes()))}
    scaled = {n * unit for n, unit in itertools.product(measured, UNITS)}
    missing = [
        text
        for text in told(section)
        if not any(
            abs(n - float(text.replace(",", ""))) <= 0.501 * 10 ** -len(text.partition(".")[2])
            for n in scaled
        )
    ]
    assert not missing
