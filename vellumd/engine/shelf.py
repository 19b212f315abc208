"""Which artefact an edit wants, of those that lie in `engine.artifact_dir`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from vellumd import artefact, model_card
from vellumd.artefact import Artefact, Stamp
from vellumd.engine.precision import Recipe
from vellumd.models import LoraRef
from vellumd.settings import EngineSettings


class Shelf:
    """The artefacts of one model that fit one recipe; looked through anew for each edit."""

    def __init__(
        self,
        settings: EngineSettings,
        card: model_card.ModelCard,
        files: Iterable[Path],
        recipe: Recipe,
    ) -> None:
        """`files` are those of the model's transformer."""
        self._settings = settings
        self._card = card
        self._recipe = recipe
        self._source = artefact.source_of(files)

    def best(self, loras: Sequence[LoraRef]) -> Artefact | None:
        """The one with most of `loras` inside and no other; None if the model itself has to do.

        Weights as they are in the files come from the model alone.
        """
        if self._recipe.linear is None:
            return None
        there = artefact.found(artefact.home(self._settings.artifact_dir))
        return artefact.best(there, self._source, self._settings.keep, self._stamped(loras))

    def beside(self, ready: Artefact | None, loras: Sequence[LoraRef]) -> int:
        """Bytes of the files of those of `loras` that are not inside the weights."""
        inside = set() if ready is None else ready.fuses()
        outside = [ref for ref in loras if ref.name != self._card.fused]
        return sum(
            stamp.size for stamp, scale in self._stamped(outside) if (stamp, scale) not in inside
        )

    def _stamped(self, loras: Sequence[LoraRef]) -> Iterator[tuple[Stamp, float]]:
        settings = self._settings
        for ref in loras:
            file = model_card.find_lora(
                model_card.folder(settings.model), self._card, settings.loras, ref.name,
                settings.base,
            )  # fmt: skip
            if file is not None and file.is_file():
                yield Stamp.of(file), ref.scale
