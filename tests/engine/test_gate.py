"""The gate tells recipes that only cost bits from those that cost edits."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from tests.engine import gate
from vellumd.demo.world import KINDS


@pytest.fixture(scope="module")
def opened() -> gate.Gate:
    """The demo with an exam of one edit of each kind."""
    return gate.Gate.open(len(KINDS))


def test_the_weights_themselves(opened: gate.Gate) -> None:
    """Compared with themselves the weights have no complaint, so they edit as promised."""
    assert gate.complaints(opened.untouched, opened.untouched) == []


@pytest.mark.parametrize("name", gate.ACCEPTED)
def test_accepted(opened: gate.Gate, name: str) -> None:
    """What stays within the rounding of FP8 with scales by row passes."""
    assert gate.complaints(opened.untouched, opened.sit(gate.ACCEPTED[name])) == []


@pytest.mark.parametrize("name", gate.REJECTED)
def test_rejected(opened: gate.Gate, name: str) -> None:
    """What damages edits does not pass."""
    assert gate.complaints(opened.untouched, opened.sit(gate.REJECTED[name]))


def test_tampering_ends(opened: gate.Gate) -> None:
    """After a recipe the model paints as before, to the byte."""
    first = replace(opened, questions=opened.questions[:1])
    for tamper in (gate.REJECTED | gate.ACCEPTED).values():
        with tamper(opened.model):
            pass
    again = first.sit(lambda model: gate.quantised(model, lambda weight: weight))
    assert np.array_equal(again.pictures[0], opened.untouched.pictures[0])


def test_lost_edits_are_told(opened: gate.Gate) -> None:
    """Equal pictures with other marks are rejected for the edits that were lost."""
    whole = replace(opened.untouched, passed=np.ones_like(opened.untouched.passed))
    lost = replace(whole, passed=np.zeros_like(whole.passed))
    assert gate.complaints(whole, whole) == []
    assert any("lost" in words for words in gate.complaints(whole, lost))
