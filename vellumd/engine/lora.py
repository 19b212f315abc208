"""LoRAs: low-rank branches beside the transformer's linears, switched per edit."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from vellumd import errors, model_card
from vellumd.artefact import Stamp
from vellumd.engine import precision
from vellumd.engine.hashes import Hashes, told
from vellumd.engine.loading import Parts
from vellumd.engine.reading import Reader
from vellumd.models import LoraRef, UsedLora
from vellumd.weights import lora as files
from vellumd.weights.checkpoint import Checkpoint
from vellumd.weights.header import Place


class Pair(NamedTuple):
    """What a LoRA adds to one linear: `scale` · up [out, rank] · down [rank, in]."""

    down: Tensor
    up: Tensor
    scale: float


class Branched(torch.nn.Module):
    """A linear, whatever holds its weights, with a low-rank branch beside it."""

    down: Tensor
    up: Tensor

    def __init__(self, base: torch.nn.Module, pairs: Sequence[Pair]) -> None:
        """Several pairs make one branch, of all their ranks. They are in the branch's type."""
        super().__init__()
        self.base = base
        down = torch.cat([pair.down for pair in pairs])
        up = torch.cat([(pair.up.float() * pair.scale).to(pair.up.dtype) for pair in pairs], dim=1)
        self.register_buffer("down", down, persistent=False)
        self.register_buffer("up", up, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """`x` [..., in] to [..., out]."""
        y: Tensor = self.base(x)
        return y.add_(F.linear(F.linear(x, self.down), self.up))


class Version(NamedTuple):
    """A file as it is now: one that is replaced or written anew is another version."""

    file: Path
    mtime_ns: int
    size: int
    inode: int

    @classmethod
    def of(cls, file: Path) -> Version:
        """By a look at the folder alone; raises `OSError`."""
        state = file.stat()
        return cls(file, state.st_mtime_ns, state.st_size, state.st_ino)


class Loaded:
    """The pairs of one version of a file, whose hash is taken while edits go on."""

    def __init__(self, version: Version, pairs: dict[str, Pair]) -> None:
        self._version = version
        self._hashes = Hashes([version.file])
        self.pairs = pairs

    def sha256(self) -> str | None:
        """The hash of what was loaded; None if the file is another by now. Waits once."""
        try:
            found = self._hashes.found()
            same = Version.of(self._version.file) == self._version
        except OSError:
            return None
        return found[told(self._version.file)] if same else None


class Loras:
    """The LoRAs of one loaded transformer.

    The base weights are never touched, so switching off is exact, and it does not matter
    how they are held. The tensors of the last edit stay loaded; others are dropped when a
    new LoRA comes, so memory stays bounded. A file that was replaced is a new LoRA.
    """

    def __init__(
        self,
        parts: Parts,
        folder: Path,
        card: model_card.ModelCard,
        configured: dict[str, str],
        base: str | None = None,
    ) -> None:
        self._transformer = parts.transformer
        self._checkpoint = parts.model.transformer
        self._ready = parts.ready
        self._folder = folder
        self._card = card
        self._configured = configured
        self._base = base
        self._loaded: dict[Version, Loaded] = {}
        self._branched: dict[str, Branched] = {}
        self._used: list[tuple[LoraRef, Version]] = []
        self._inside: list[UsedLora] = []

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

        Raises `UnknownLora` for a name without a file, and for a file that is damaged or made for
        another model. Whatever is raised, then none takes part.
        """
        try:
            inside = {ref: self._fused(ref) for ref in wanted}
            beside = [(ref, self._version(ref.name)) for ref in wanted if inside[ref] is None]
            self._inside = [used for used in inside.values() if used]
            if beside == self._used:
                return  # Else two edits in a row would move hundreds of branches for nothing.
            self._detach()
            self._bring({version for _, version in beside})
            self._attach(beside)
        except BaseException:
            self._detach()  # `_used` would pass off the half of them as none
            raise
        self._used = beside

    def used(self) -> list[UsedLora]:
        """What takes part now. Waits until the files' hashes are known."""
        beside = [
            UsedLora(**ref.model_dump(), file=version.file.name,
                     sha256=self._loaded[version].sha256())
            for ref, version in self._used
        ]  # fmt: skip
        return [*self._inside, *beside]

    def _fused(self, ref: LoraRef) -> UsedLora | None:
        """`ref` if the weights have it inside, as they came or by the artefact's making."""
        if ref.name == self._card.fused:
            return UsedLora(**ref.model_dump())
        file = self._file(ref.name)
        if self._ready is None or file is None:
            return None
        if (Stamp.of(file), ref.scale) not in self._ready.fuses():
            return None
        sha256 = self._ready.manifest.hashes.get(told(file))
        return UsedLora(**ref.model_dump(), file=file.name, sha256=sha256)

    def _version(self, name: str) -> Version:
        file = self._file(name)
        if file is None:
            raise errors.UnknownLora(f"There is no LoRA {name!r}.")
        return Version.of(file)

    def _bring(self, wanted: set[Version]) -> None:
        """Have all `wanted` loaded; where one comes, what nobody wants goes first."""
        for version in wanted - self._loaded.keys():
            for gone in self._loaded.keys() - wanted:
                del self._loaded[gone]
            self._loaded[version] = Loaded(version, self._load(version.file))

    def _load(self, file: Path) -> dict[str, Pair]:
        """The pairs of `file` where the transformer is, in its type."""
        like = self._transformer.img_in.weight
        try:
            pairs = read(file, self._checkpoint, like.device)
        except errors.ModelInvalid as error:  # the request is wrong, and not this machine's model
            raise errors.UnknownLora(error.message) from None
        for module in pairs:
            if not hasattr(self._transformer.get_submodule(module), "in_features"):
                raise errors.UnknownLora(
                    f"The LoRA {file.name} changes the modulation, which is a table here: fuse "
                    "it with `vellumd convert --lora`."
                )
        return {
            module: Pair(pair.down.to(like), pair.up.to(like), pair.scale)
            for module, pair in pairs.items()
        }

    def _attach(self, wanted: Sequence[tuple[LoraRef, Version]]) -> None:
        of_module: dict[str, list[Pair]] = {}
        for ref, version in wanted:
            for module, pair in self._loaded[version].pairs.items():
                scaled = pair._replace(scale=pair.scale * ref.scale)
                of_module.setdefault(module, []).append(scaled)
        for module, pairs in of_module.items():
            branched = Branched(self._transformer.get_submodule(module), pairs)
            precision.put(self._transformer, module, branched)
            self._branched[module] = branched

    def _detach(self) -> None:
        self._used = []
        while self._branched:
            module, branched = self._branched.popitem()
            precision.put(self._transformer, module, branched.base)


def read(file: Path, checkpoint: Checkpoint, device: torch.device) -> dict[str, Pair]:
    """The pairs of the LoRA in `file`, on `device`, by the linears of `checkpoint`.

    Raises `ModelInvalid` for a file that is damaged, no LoRA or made for another model.
    """
    pairs = files.read(file, checkpoint).pairs
    places = [place for pair in pairs.values() for place in (pair.down, pair.up)]
    alphas = [pair.alpha for pair in pairs.values() if isinstance(pair.alpha, Place)]
    with Reader(device) as reader:
        tensors = reader.places(places)
        halves = [(next(tensors), next(tensors)) for _ in pairs]
        numbers = map(float, reader.places(alphas))
        return {
            module: Pair(*half, _scale(next(numbers) if isinstance(p.alpha, Place) else p.alpha, p))
            for (module, p), half in zip(pairs.items(), halves, strict=True)
        }


def _scale(alpha: float | None, pair: files.Pair) -> float:
    return 1.0 if alpha is None else alpha / pair.rank


def fused(weight: Tensor, pairs: Sequence[Pair]) -> Tensor:
    """`weight` [out, in] with the pairs added, in float32: before it is rounded, never after.

    Added to weights that are FP8 already, a LoRA would be lost: 71 % of weights do not move
    for a change of 5 % of their size.
    """
    whole = weight.float()
    for pair in pairs:
        whole = whole.addmm(pair.up.float(), pair.down.float(), alpha=pair.scale)
    return whole
