"""Running what may not run on a card, to learn why not, and to go on without it."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch

from vellumd.engine import faults

log = logging.getLogger(__name__)


def refusal(run: Callable[[], str | None]) -> str | None:
    """What `run` says against something, or the first line of the error that it ends with.

    An error that has lost the card is raised: nothing runs after it.
    """
    try:
        return run()
    except Exception as failure:
        if isinstance(failure, torch.AcceleratorError) and _is_lost():
            raise
        return _in_a_line(failure)


class Standby:
    """Twins of operations that passed their trial and fail later, at sizes that it had not.

    `replaced`: which twins have taken over for good, and why.
    """

    def __init__(self) -> None:
        self.replaced: dict[str, str] = {}

    def behind(
        self, name: str, run: Callable[..., Any], twin: Callable[..., Any]
    ) -> Callable[..., Any]:
        """`run` until it fails, from then on `twin`, which begins with the same arguments.

        So `run` is one launch that fails before it has changed any. Memory that ran out is
        another's to mend, and an error that has lost the card is raised.
        """

        def either(*given: Any) -> Any:
            if name in self.replaced:
                return twin(*given)
            try:
                return run(*given)
            except Exception as failure:
                if faults.is_memory(failure) or (faults.is_sticky(failure) and _is_lost()):
                    raise
                self.replaced[name] = _in_a_line(failure)
                log.exception("the kernel of %s failed: plain PyTorch takes its place", name)
            return twin(*given)

        return either


def _in_a_line(failure: Exception) -> str:
    return f"{type(failure).__name__}: {failure}".partition("\n")[0]


def _is_lost() -> bool:
    """Whether the card answers nothing any more: not so where a kernel was just not for it."""
    try:
        torch.cuda.synchronize()
    except Exception:  # noqa: BLE001 (no answer, whatever it is called)
        return True
    return False
