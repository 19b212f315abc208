"""LoRAs: side branches of the transformer, switched per edit, never fused."""

from __future__ import annotations

import itertools
import logging
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from diffusers.loaders.lora_pipeline import QwenImageLoraLoaderMixin
from safetensors import SafetensorError
from safetensors.torch import load_file

from vellumd import errors, model_card
from vellumd.models import LoraRef

log = logging.getLogger(__name__)


class Loras:
    """The LoRAs of one loaded transformer.

    The base weights are never touched, so switching off is exact. Those of the last
    edit stay loaded; others are dropped when a new one comes, so memory stays bounded.
    """

    def __init__(
        self,
        transformer: Any,
        folder: Path,
        card: model_card.ModelCard,
        configured: dict[str, str],
        base: str | None = None,
    ) -> None:
        self._transformer = transformer
        self._folder = folder
        self._card = card
        self._configured = configured
        self._base = base
        self._loaded: dict[str, str] = {}
        self._numbers = itertools.count(1)

    def names(self) -> tuple[str, ...]:
        """Roles and files that an edit can name here."""
        roles = {*self._card.loras, *self._configured}
        homes = model_card.lora_folders(self._folder, self._base)
        files = {file.stem for home in homes for file in home.glob("*.safetensors")}
        inside = {self._card.fused} if self._card.fused else set()
        return tuple(sorted({name for name in roles | files if self._file(name)} | inside))

    def _file(self, name: str) -> Path | None:
        found = model_card.find_lora(self._folder, self._card, self._configured, name, self._base)
        return found if found is not None and found.is_file() else None

    def use(self, wanted: Sequence[LoraRef]) -> None:
        """Make exactly `wanted` take part in the next forwards, at their scales.

        Raises `UnknownLora` for a name without a file, `ModelInvalid` for a file that
        is damaged or made for another model; then none takes part.
        """
        if self._loaded:
            self._transformer.disable_lora()
        wanted = [ref for ref in wanted if ref.name != self._card.fused]
        if not wanted:
            return
        files = {ref.name: self._file(ref.name) for ref in wanted}
        for name, file in files.items():
            if file is None:
                raise errors.UnknownLora(f"There is no LoRA {name!r}.")
            if name not in self._loaded:
                self._drop(set(self._loaded) - set(files))
                self._load(name, file)
        self._transformer.enable_lora()
        self._transformer.set_adapters(
            [self._loaded[ref.name] for ref in wanted], [ref.scale for ref in wanted]
        )

    def _drop(self, names: set[str]) -> None:
        for name in names:
            self._transformer.delete_adapters(self._loaded.pop(name))

    def _load(self, name: str, file: Path) -> None:
        """Read `file` as tensors only; diffusers turns key names and alpha into peft's."""
        if file.suffix != ".safetensors":
            raise errors.ModelInvalid(f"The LoRA {name!r} is not a .safetensors file.")
        adapter = f"lora_{next(self._numbers)}"
        try:
            tensors = QwenImageLoraLoaderMixin.lora_state_dict(load_file(file))
            tensors = {key.removeprefix("transformer."): value for key, value in tensors.items()}
            self._check(tensors)
            with warnings.catch_warnings():
                # Several adapters in one model are what we want.
                warnings.filterwarnings("ignore", message="Already found a `peft_config`")
                self._transformer.load_lora_adapter(tensors, prefix=None, adapter_name=adapter)
        except (SafetensorError, OSError, ValueError, KeyError, RuntimeError) as error:
            if type(error).__name__ in ("OutOfMemoryError", "AcceleratorError"):
                raise
            log.warning("LoRA %s cannot be loaded", name, exc_info=True)
            raise errors.ModelInvalid(
                f"The LoRA {name!r} is damaged or made for another model."
            ) from None
        self._loaded[name] = adapter

    def _check(self, tensors: dict[str, Any]) -> None:
        """Raise `ValueError` for a tensor that no linear of the transformer takes."""
        modules = dict(self._transformer.named_modules())
        for key in tensors:
            if key.partition(".lora_")[0] not in modules:
                raise ValueError(f"no module for {key}")
