"""The loaded model of an engine, with what is made once for it and kept from edit to edit."""

from __future__ import annotations

from collections.abc import Hashable

from torch import Tensor

from vellumd import model_card
from vellumd.engine import latents, loading, placing, vae_forward
from vellumd.engine.content import Store, size_of
from vellumd.engine.copies import Copy
from vellumd.engine.encode import Encoder
from vellumd.engine.lora import Loras
from vellumd.engine.tiers import Forwards
from vellumd.engine.trial import Standby
from vellumd.memory_plan import PROMPTS, Kept, KeysValues, Plan
from vellumd.models import Tier
from vellumd.settings import EngineSettings, Limits

MB = 10**6


class Model:
    """A model with what is made once for it."""

    def __init__(
        self,
        parts: loading.Parts,
        loras: Loras,
        card: model_card.ModelCard,
        limits: Limits | None = None,
        settings: EngineSettings | None = None,
        store: Store | None = None,
        plan: Plan | None = None,
    ) -> None:
        """`limits` are those of inputs; limits and `settings` are the defaults if left out.

        `store` is one that was filled by the same encoder and VAE. `plan` is what `parts` were
        placed by; left out, memory is no concern.
        """
        self.plan = plan or Plan()
        if self.plan.tiled:
            parts.vae.enable_tiling()
        self.limits = limits or Limits()
        self.settings = settings or EngineSettings()
        self.parts = parts
        self.loras = loras
        self.card = card
        self.standby = Standby()
        if parts.device.type == "cuda" and self.settings.forward != "stock":
            ops = vae_forward.choose(self.settings.kernels, parts.device, parts.dtype, self.standby)
            vae_forward.hasten(parts.vae, ops)
        self.codec = latents.Codec(parts.vae)
        self.store = store or Store(self.settings.cache_mb * MB)
        self.encoder = Encoder(parts.processor, parts.text_encoder, card.prompt_tokens, self.store)
        self.forwards = Forwards.of(parts, self.settings, self.standby)

    @property
    def keys_values(self) -> KeysValues:
        """What a token's keys and values take."""
        blocks = self.parts.transformer.transformer_blocks
        heads = blocks[0].attn.heads
        head = self.parts.transformer.inner_dim // heads
        return placing.keys_values(heads, head, len(blocks), self.parts.dtype.itemsize)

    def kept(
        self, tokens: int, references: int, prompts: int, *, exact: bool = False
    ) -> Kept | None:
        """How keys and values of such an edit outlast a step; None if they do not fit.

        `exact`: to the bit, else as tier turbo may keep them.
        """
        kinds = placing.KINDS["whole" if exact else self.settings.turbo_kv]
        return self.keys_values.fitting(self.plan.room, tokens, references, prompts, kinds)

    @property
    def tiers(self) -> tuple[Tier, ...]:
        """The tiers that are what they stand for here; turbo with one picture at least."""
        if self.settings.tier == "reference":
            return ("reference",)
        named: tuple[Tier, ...] = ("standard", "swift", "turbo")
        tiers = [tier for tier in named if not self.forwards.lowers(tier)]
        picture = self.card.canvas_area // latents.PATCH**2
        rows = 2 * picture + self.card.prompt_tokens
        if self.kept(rows, picture, PROMPTS) is None:
            tiers = [tier for tier in tiers if tier != "turbo"]
        return tuple(tiers)

    def knows(self, reference: Copy) -> bool:
        """Whether `packed` needs no pixels."""
        return self._latents(reference) in self.store

    def packed(self, reference: Copy) -> Tensor:
        """The tokens [1, tokens, 64] of a `reference`."""
        device, dtype = self.parts.device, self.parts.dtype
        return self.store.get(
            self._latents(reference),
            lambda: latents.pack(self.codec.encode(reference.picture(), device, dtype)),
            size_of,
        )

    def _latents(self, reference: Copy) -> tuple[str, *tuple[Hashable, ...]]:
        # Tiles give slightly other latents.
        return "latents", reference.key, self.parts.vae.use_tiling
