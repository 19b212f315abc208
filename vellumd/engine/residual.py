"""The residual stream of pictures or texts on its way through the blocks."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from vellumd.engine.kernels.choice import Ops
from vellumd.engine.kernels.feed import Fed, Need
from vellumd.engine.kernels.modulate import gate_residual


@dataclass
class Residual:
    """Rows [prompts, rows, channels], of which the first `split` have a modulation of their own.

    What a block's MLP made, of the same shape, and its gate are `pending` until the next norm adds
    them, in the same pass over the rows. Blocks change all of it in place.
    """

    rows: Tensor
    split: int
    pending: tuple[Tensor, Tensor] | None = None

    def normed(self, ops: Ops, shift: Tensor, scale: Tensor, need: Need) -> Fed:
        """LayerNorm with modulation of the rows, to which what is pending is added."""
        pending, self.pending = self.pending, None
        if pending is None:
            return ops.norm_modulate(self.rows, shift, scale, self.split, need)
        return ops.gate_norm_modulate(self.rows, *pending, shift, scale, self.split, need)

    def whole(self) -> Tensor:
        """The rows, to which what is pending is added."""
        pending, self.pending = self.pending, None
        if pending is not None:
            gate_residual(self.rows, *pending, self.split)
        return self.rows
