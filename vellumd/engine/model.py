"""The loaded model of an engine, with what is made once for it and kept from edit to edit."""

from __future__ import annotations

from PIL import Image
from torch import Tensor

from vellumd import model_card
from vellumd.engine import latents, loading
from vellumd.engine.content import Store, digest, size_of
from vellumd.engine.encode import Encoder
from vellumd.engine.lora import Loras
from vellumd.engine.tiers import Forwards
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
        *,
        tiled: bool = False,
    ) -> None:
        """`limits` are those of inputs; limits and `settings` are the defaults if left out.

        `store` is one that was filled by the same encoder and VAE. `tiled`: the VAE always is.
        """
        if tiled:
            parts.vae.enable_tiling()
        self.limits = limits or Limits()
        self.settings = settings or EngineSettings()
        self.parts = parts
        self.loras = loras
        self.card = card
        self.codec = latents.Codec(parts.vae)
        self.store = store or Store(self.settings.cache_mb * MB)
        self.encoder = Encoder(
            parts.processor, parts.text_encoder, card.vision_area, card.prompt_tokens, self.store
        )
        self.forwards = Forwards.of(parts, self.settings)

    def packed(self, picture: Image.Image) -> Tensor:
        """The tokens [1, tokens, 64] of a reference `picture`."""
        device, dtype, vae = self.parts.device, self.parts.dtype, self.parts.vae
        return self.store.get(
            # Tiles give slightly other latents.
            ("latents", digest([picture]), vae.use_tiling),
            lambda: latents.pack(self.codec.encode(picture, device, dtype)),
            size_of,
        )
