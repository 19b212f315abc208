"""What a guided forward holds beside the weights, which the memory plan counts on."""

# diffusers annotates in part only.
# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

import weakref
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tests.engine import random_transformer as small
from vellumd.engine import attention, precision
from vellumd.engine.lora import Branched, Pair
from vellumd.engine.plan import Plan
from vellumd.engine.rows import BOTH
from vellumd.engine.transformer import Conditioning, Own

SHAPES = [(1, 20, 20)] * 4
TEXT = 50
ROWS = TEXT + 4 * 400


class Held(TorchDispatchMode):
    """Counts the bytes that tensors made within it hold; `most` is the most at any time."""

    def __init__(self) -> None:
        super().__init__()
        self._held: dict[int, int] = {}
        self.most = 0

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        before = set(map(id, storages((args, kwargs))))
        made = function(*args, **kwargs or {})
        for storage in storages(made):
            if id(storage) not in before:
                self._held[id(storage)] = storage.nbytes()
                weakref.finalize(storage, self._held.pop, id(storage), None)
        self.most = max(self.most, sum(self._held.values()))
        return made


def storages(of: Any) -> list[torch.UntypedStorage]:
    """Those of all tensors within `of`."""
    return [x.untyped_storage() for x in tree_leaves(of) if isinstance(x, Tensor)]


def drawn(*shape: int) -> Tensor:
    return torch.randn(shape).bfloat16()


@pytest.mark.parametrize("branched", [False, True])
@torch.inference_mode()
def test_both_prompts_are_widened_one_at_a_time(branched: bool) -> None:
    """In copies of one prompt's rows, 105 MB of the reference job's.

    Queries, keys and values of both are 6, their rows and what attention made of them 4, the
    references' embedding 1; the MLP has 4 before and 4 behind GELU, of one prompt at a time, or
    4 and a LoRA's 4. Two more are for all else.
    """
    model = small.transformer(torch.bfloat16, layers=2)
    if branched:
        for name, linear in list(precision.small_linears(model)):
            pair = Pair(drawn(2, linear.in_features), drawn(linear.out_features, 2), 1.0)
            precision.put(model, name, Branched(linear, [pair]))
    given = Conditioning(drawn(1, TEXT, 64), drawn(1, TEXT, 64), drawn(1, 1200, 64), SHAPES)
    own, tokens = Own(model, attention.default), drawn(1, 400, 64)
    with Held() as held:
        own.prepare(given, small.TIMES, Plan.full(3))(0, BOTH, tokens)
    assert held.most <= 21 * ROWS * model.inner_dim * 2
