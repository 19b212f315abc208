"""Running what may not run on a card, to learn why not."""

from __future__ import annotations

from collections.abc import Callable

import torch


def refusal(run: Callable[[], str | None]) -> str | None:
    """What `run` says against something, or the first line of the error that it ends with.

    An error that has lost the card is raised: nothing runs after it.
    """
    try:
        return run()
    except Exception as failure:
        if isinstance(failure, torch.AcceleratorError) and _is_lost():
            raise
        return f"{type(failure).__name__}: {failure}".partition("\n")[0]


def _is_lost() -> bool:
    """Whether the card answers nothing any more: not so where a kernel was just not for it."""
    try:
        torch.cuda.synchronize()
    except Exception:  # noqa: BLE001 (no answer, whatever it is called)
        return True
    return False
