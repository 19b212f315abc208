"""Which forward each tier runs on this machine."""

from __future__ import annotations

from dataclasses import dataclass

from vellumd import errors
from vellumd.engine import attention, loading
from vellumd.engine.kernels import choice
from vellumd.engine.transformer import Forward, Own, Stock
from vellumd.engine.trial import Standby
from vellumd.models import Tier
from vellumd.settings import EngineSettings


@dataclass(frozen=True)
class Forwards:
    """The forward of exact attention, and that on 8 bits for swift and turbo if it runs here.

    Steps that use references again attend exactly: rounding all keys anew costs what 8 bits save,
    and both together cost the demo more edits than its gate allows (docs/demo.md).
    `attention` names the kernels, best first.
    """

    exact: Forward
    eight_bit: Forward | None
    attention: tuple[str, ...]

    @classmethod
    def of(
        cls, parts: loading.Parts, settings: EngineSettings, standby: Standby | None = None
    ) -> Forwards:
        """Those that `settings` ask for, over the transformer of `parts`.

        What stands behind kernels is in `standby`. Raises `RecipeUnsupported` where a wanted
        one does not run.
        """
        causal = parts.model.causal
        if settings.forward == "stock":
            if causal:
                raise errors.RecipeUnsupported("Diffusers' forward knows no causal references.")
            return cls(Stock(parts.transformer), None, ("diffusers",))
        width = parts.transformer.config.attention_head_dim
        best = attention.choose(settings.attention, parts.device, parts.dtype, width)
        ops = choice.choose(settings.kernels, parts.device, parts.dtype, standby).ops

        def own(kernel: attention.Attention) -> Forward:
            if settings.compile:
                return Own(parts.transformer, kernel, again=best.attention, causal=causal).fused()
            return Own(parts.transformer, kernel, ops, best.attention, causal=causal)

        exact = own(best.attention)
        small = None
        if settings.attention == "auto" and settings.tier != "reference":
            small = attention.choose_8bit(parts.device, parts.dtype, width, standby)
        if small is None:
            return cls(exact, None, (best.name,))
        return cls(exact, own(small.attention), (small.name, best.name))

    def of_tier(self, tier: Tier) -> Forward:
        """The forward that an edit of `tier` runs."""
        return self.eight_bit if self.eight_bit and tier in ("swift", "turbo") else self.exact

    def lowers(self, tier: Tier) -> bool:
        """Whether `tier` gets less than it stands for.

        Turbo stands for keys and values used again, which needs no special kernel.
        """
        if tier == "turbo":
            return not self.exact.reuses
        return tier == "swift" and self.eight_bit is None
