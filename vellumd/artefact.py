"""Artefacts: a transformer made ready beforehand, so that less is read and nothing rounded.

    FOLDER/manifest.json             what it was made of, and of which files it consists
    FOLDER/transformer/config.json
    FOLDER/transformer/block-*.safetensors, rest.safetensors
    FOLDER/tables.safetensors        modulation at the steps of the shipped schedules
    FOLDER/modulation.safetensors    what other schedules' modulation is computed from

`vellumd convert` makes them, `engine.artifact_dir` keeps them side by side, and the engine
finds the one it needs by a key that is made without reading the weights. Standard library
and pydantic only, so that doctor and the command line know artefacts too.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from vellumd import errors, platform
from vellumd.images import sha256_of
from vellumd.models import Frozen
from vellumd.weights import header

FORMAT = 1
"""Raised when an artefact of before is not to be used any more."""
MANIFEST = "manifest.json"
TRANSFORMER = "transformer"
TABLES = "tables.safetensors"
MODULATION = "modulation.safetensors"


class Stamp(Frozen):
    """How a weight file is known again without reading it; `header` is that part's SHA-256."""

    name: str
    size: int
    mtime_ns: int
    header: str

    @classmethod
    def of(cls, file: Path) -> Stamp:
        """The stamp of a safetensors file, from its header alone; raises `OSError`."""
        state = file.stat()
        with file.open("rb") as opened:
            start = opened.read(8)
            length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
            header = opened.read(min(length, state.st_size))
        digest = hashlib.sha256(start + header).hexdigest()
        return cls(name=file.name, size=state.st_size, mtime_ns=state.st_mtime_ns, header=digest)


class Fused(Frozen):
    """A LoRA inside the weights: its file and the scale it was added with."""

    file: Stamp
    scale: float = 1.0


class Order(Frozen):
    """All that decides what an artefact holds."""

    format: int = FORMAT
    source: tuple[Stamp, ...]
    fused: tuple[Fused, ...] = ()
    keep: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        """SHA-256 of the order."""
        text = json.dumps(self.model_dump(mode="json"), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()


class Shard(Frozen):
    """One file of an artefact."""

    size: int
    sha256: str


class Manifest(Frozen):
    """`manifest.json`, written last: an artefact with one is whole.

    `hashes` are the full SHA-256 of the source's files and the LoRAs', by folder and name,
    computed once; `fp8_source` says that the weights were FP8 before, so that they are no
    better than those.
    """

    order: Order
    key: str
    model: str
    fp8_source: bool
    hashes: dict[str, str]
    files: dict[str, Shard]


@dataclass(frozen=True)
class Artefact:
    """An artefact on the disk."""

    folder: Path
    manifest: Manifest

    @property
    def transformer(self) -> Path:
        """Folder of the transformer, in the diffusers layout without the modulation."""
        return self.folder / TRANSFORMER

    def fuses(self) -> set[tuple[Stamp, float]]:
        """What is inside the weights: LoRAs, each with its scale."""
        return {(fused.file, fused.scale) for fused in self.manifest.order.fused}

    def check(self, *, hashes: bool = False) -> None:
        """Raise `ModelInvalid` that names artefact and file where a header is damaged.

        With `hashes` all bytes are read, and compared with what was written.
        """
        for name, shard in self.manifest.files.items():
            file = self.folder / name
            try:
                header.read(file)
            except errors.ModelInvalid as error:
                raise self._damaged(error.message) from None
            with header.readable(f"The file {header.told(file)}"):
                if hashes and sha256_of(file) != shard.sha256:
                    raise self._damaged(f"The file {name} does not hold what was written.")

    def _damaged(self, what: str) -> errors.ModelInvalid:
        return errors.ModelInvalid(
            f"The artefact {self.folder.name} is damaged. {what} Remove its folder; "
            "`vellumd convert` makes it again."
        )


def home(artifact_dir: Path | None) -> Path:
    """Where artefacts lie: `engine.artifact_dir`, or beside what else can be made again."""
    return artifact_dir or platform.cache_dir() / "artifacts"


def source_of(files: Iterable[Path]) -> tuple[Stamp, ...]:
    """The stamps of a source's files, in the order of their names."""
    return tuple(sorted((Stamp.of(file) for file in files), key=lambda stamp: stamp.name))


def found(folder: Path) -> Iterator[Artefact]:
    """The whole artefacts in `folder` whose files are all there, in the order of their names.

    What has no manifest of this format, or lacks a file, is none.
    """
    if not folder.is_dir():
        return
    for home in sorted(folder.iterdir()):
        try:
            manifest = Manifest.model_validate_json((home / MANIFEST).read_bytes())
            whole = all(
                (home / name).stat().st_size == shard.size for name, shard in manifest.files.items()
            )
        except (OSError, ValidationError):
            continue
        if whole and manifest.order.format == FORMAT and manifest.key == manifest.order.key:
            yield Artefact(home, manifest)


def best(
    artefacts: Iterable[Artefact],
    source: Sequence[Stamp],
    keep: Sequence[str],
    wanted: Iterable[tuple[Stamp, float]],
) -> Artefact | None:
    """The artefact of `source` with most of the `wanted` LoRAs inside and no other.

    LoRAs that it lacks run as branches beside it.
    """
    asked = set(wanted)
    fitting = [
        artefact
        for artefact in artefacts
        if artefact.manifest.order.source == tuple(source)
        and artefact.manifest.order.keep == tuple(keep)
        and artefact.fuses() <= asked
    ]
    return max(fitting, key=lambda artefact: len(artefact.fuses()), default=None)
