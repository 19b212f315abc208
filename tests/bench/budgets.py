"""Budgets as benches are told of them: gigabytes of the card, and of the host after a plus."""

from __future__ import annotations


def listed(text: str) -> tuple[str, ...]:
    """Budgets out of `text`: numbers between commas, the host's after a plus."""
    budgets = tuple(text.split(","))
    for budget in budgets:
        for number in budget.split("+"):
            float(number)
    return budgets


def limits(budget: str, *, tiny: bool) -> dict[str, float]:
    """The engine's settings for `budget`; the demo is streamed within any."""
    card, _, host = budget.partition("+")
    found = {"vram_budget_gb": 0.001 if tiny else float(card)}
    return found | ({"ram_budget_gb": float(host)} if host else {})
