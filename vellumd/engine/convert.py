"""`vellumd convert`: a model's transformer to an artefact, one tensor after another.

Tensors are read ahead, rounded on the card if there is one, hashed and written behind; all
at once.

Finished files stay when it is stopped, and the next run goes on behind them; the artefact
appears under its name when all are there.
"""

# diffusers annotates in part only.
# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import diffusers
import torch
from torch import Tensor

from vellumd import artefact, errors, platform
from vellumd.artefact import MANIFEST, MODULATION, TABLES, TRANSFORMER, Fused, Manifest, Order
from vellumd.engine import linears, loading, lora, memory, precision, schedule, shards, tables
from vellumd.engine.faults import is_memory
from vellumd.engine.hashes import Hashes
from vellumd.engine.reading import Reader, StoredTensor
from vellumd.model_card import ModelCard
from vellumd.weights.checkpoint import Weight
from vellumd.weights.model import Model

log = logging.getLogger(__name__)

GB = 10**9
READ_RATE, WRITE_RATE, ROUND_RATE = 1.95 * GB, 1.0 * GB, 0.17 * GB
"""Bytes a second for the time that is told before: the disk of an H100's machine, half of it for
writing, and rounding as measured on one core of a busy machine: rather too long than too short.
A card rounds while the next bytes are read."""
CARD_ROOM = 3 * GB
"""Bytes that must be free on the card: its context, and a matrix in float32 a few times."""
RESERVE = 1 * GB
"""Bytes that must be left on the disk."""
SPAN, AHEAD, THREADS = 8 << 20, 8, 2
"""64 MiB of source are read ahead of the work."""
STEPS = (4, 8)
"""Schedules of Lightning that are tabled; they depend on no size."""
JOURNAL = "finished.jsonl"
LOCK = ".convert.lock"
"""Held in the folder of artefacts: one conversion at a time."""

FP8_ONLY = (
    "The transformer is FP8 already. Its artefact loads faster but is no better: what rounding "
    "took is brought back only by converting the bfloat16 model."
)


@dataclass(frozen=True)
class Lora:
    """A LoRA to fuse."""

    file: Path
    scale: float = 1.0


@dataclass(frozen=True)
class Needs:
    """What a conversion reads, writes and takes, for those who wait for it."""

    reads: int
    writes: int
    seconds: float
    card: str | None = None
    """Name of the card that rounds; None where the CPU does."""

    def __str__(self) -> str:
        rounding = f"up to {CARD_ROOM / GB:.0f} GB of {self.card}" if self.card else "the CPU"
        return (
            f"reads {self.reads / GB:.1f} GB, writes {self.writes / GB:.1f} GB, "
            f"takes about {_minutes(self.seconds)}, rounds with {rounding}"
        )


def _minutes(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds >= 90 else f"{max(1, round(seconds))} s"


class Conversion:
    """One artefact in the making. `keep`: see `engine.keep`."""

    def __init__(
        self, model: Model, card: ModelCard, loras: Sequence[Lora] = (), keep: Sequence[str] = ()
    ) -> None:
        """Raises `ModelInvalid` for a LoRA that does not fit, or onto weights that are FP8."""
        self._model = model
        self._card = card
        self._loras = list(loras)
        self._keep = tuple(keep)
        self._weights = model.transformer.weights
        self.fp8_source = any(
            weight.place.is_fp8 for name, weight in self._weights.items() if self._is_small(name)
        )
        if self.fp8_source and loras:
            raise errors.ModelInvalid(
                "A LoRA cannot be fused into weights that are FP8 already: it would be rounded "
                "away. Fuse it into the bfloat16 model, or let it run beside these."
            )
        self._device = device_for_rounding()
        self._pairs = self._read_loras()
        self.order = Order(
            source=artefact.source_of(model.transformer.files),
            fused=tuple(
                Fused(file=artefact.Stamp.of(one.file), scale=one.scale) for one in self._loras
            ),
            keep=self._keep,
        )

    def _read_loras(self) -> dict[str, list[lora.Pair]]:
        pairs: dict[str, list[lora.Pair]] = {}
        for one in self._loras:
            read = lora.read(one.file, self._model.transformer, self._device)
            for module, pair in read.items():
                pairs.setdefault(module, []).append(pair._replace(scale=pair.scale * one.scale))
        return pairs

    @property
    def name(self) -> str:
        """A folder's name that tells model and key."""
        return f"{self._card.name}-{self.order.key[:12]}"

    @property
    def blocks(self) -> int:
        """Blocks of the transformer."""
        return int(self._model.configs[TRANSFORMER]["num_layers"])

    def needs(self) -> Needs:
        """Sizes and time, before anything is read."""
        small = sum(w.place.count for n, w in self._weights.items() if self._is_small(n))
        reads = self._model.transformer.nbytes
        writes = self._writes()
        on_card = self._device.type != "cpu"
        rounding = 0 if on_card else 2 * small / ROUND_RATE
        seconds = reads / READ_RATE + rounding + writes / WRITE_RATE
        card = torch.cuda.get_device_name(self._device) if on_card else None
        return Needs(reads, writes, seconds, card)

    def _writes(self) -> int:
        """Bytes of the artefact's tensors, but for the tables."""
        return sum(shards.size_of(self._layout(group)) for group in self._groups().values())

    def is_made(self, target: Path) -> bool:
        """Whether `target` is this very artefact: of the same files, with the same inside."""
        there = artefact.found(target.parent)
        return any(one.folder == target and one.manifest.order == self.order for one in there)

    def run(self, target: Path, beat: Callable[[int, int], None]) -> Path:
        """Make the artefact `target`; `beat` is told bytes written, and of how many.

        Raises `StorageFull` before anything is written where the disk is short, and
        `ConfigError` for a target that is something else.
        """
        if self.is_made(target):
            return target
        if target.exists():
            raise errors.ConfigError(
                f"{target} is there and is not this artefact whole. Remove it, or name another."
            )
        target.parent.mkdir(parents=True, exist_ok=True)
        home = target.with_name(f"{target.name}.part")
        lock = self._lock(target)
        try:
            done = self._resume(home)
            total = self._writes()
            self._check_room(home, total - sum(shard.size for shard in done.values()))
            sources = *self._model.transformer.files, *(one.file for one in self._loras)
            with Hashes(sources) as hashes:
                files = self._written(home, lambda size: beat(size, total))
                manifest = Manifest(
                    order=self.order, key=self.order.key, model=self._card.name,
                    fp8_source=self.fp8_source, hashes=hashes.found(),
                    files=dict(sorted(files.items())),
                )  # fmt: skip
            platform.replace_durably(home / MANIFEST, manifest.model_dump_json(indent=1).encode())
            (home / JOURNAL).unlink()
            home.replace(target)
            platform.fsync_dir(target.parent)
        finally:
            lock.release()
        return target

    def _lock(self, target: Path) -> platform.FileLock:
        try:
            return platform.FileLock(target.parent / LOCK)
        except platform.LockedError:
            raise errors.ConfigError(
                f"Another process is converting into {target.parent}: wait for it."
            ) from None

    def _check_room(self, home: Path, missing: int) -> None:
        free = shutil.disk_usage(home).free
        if free < missing + RESERVE:
            raise errors.StorageFull(
                f"The artefact needs {missing / GB:.1f} GB more and 1 GB to spare; the disk of "
                f"{home.parent.name!r} has {free / GB:.1f} GB."
            )

    def _resume(self, home: Path) -> dict[str, artefact.Shard]:
        """The files that an earlier run finished; one of another order is begun anew."""
        journal = home / JOURNAL
        lines = journal.read_text("utf-8").splitlines() if journal.is_file() else []
        if not lines or lines[0] != self.order.key:
            shutil.rmtree(home, ignore_errors=True)
            (home / TRANSFORMER).mkdir(parents=True)
            platform.replace_durably(journal, f"{self.order.key}\n".encode())
            return {}
        done: dict[str, artefact.Shard] = {}
        for line in lines[1:]:
            try:
                entry = json.loads(line)
                shard = artefact.Shard(size=entry["size"], sha256=entry["sha256"])
                if (home / entry["name"]).stat().st_size == shard.size:
                    done[entry["name"]] = shard
            except (ValueError, KeyError, OSError):
                continue  # a line that was being written, or a file that was taken away
        return done

    def _written(self, home: Path, beat: Callable[[int], None]) -> dict[str, artefact.Shard]:
        """All files, written on the CPU from where the card's memory ran out.

        It is shared with whatever starts there in the meantime, a daemon for one.
        """
        try:
            return self._write(home, beat)
        except Exception as error:
            if self._device.type == "cpu" or not is_memory(error):
                raise
        log.warning("the card's memory ran out: the rest is rounded on the CPU")
        self._device = torch.device("cpu")
        self._pairs = self._read_loras()
        memory.free()
        return self._write(home, beat)

    def _write(self, home: Path, beat: Callable[[int], None]) -> dict[str, artefact.Shard]:
        """Write the files that are not finished; all of them."""
        config = json.dumps(self._model.configs[TRANSFORMER], indent=1).encode()
        platform.replace_durably(home / TRANSFORMER / "config.json", config)
        files = self._resume(home)
        beat(sum(shard.size for shard in files.values()))
        with self._reader(torch.device("cpu")) as host, self._reader(self._device) as reader:
            for name, group in self._groups().items():
                if name in files:
                    continue
                layout = self._layout(group)
                rounds = any(self._is_small(weight.name) for weight in group)
                tensors = self._tensors(reader if rounds else host, group)
                self._finish(home, name, layout, self._told(tensors, files, beat), files)
            if TABLES not in files:
                made = dict(self._tables(reader))
                layout = {
                    name: (shards.NAMES[tensor.dtype], tuple(tensor.shape))
                    for name, tensor in made.items()
                }
                self._finish(home, TABLES, layout, made.items(), files)
        return files

    def _reader(self, device: torch.device) -> Reader:
        return Reader(device, lambda _: None, threads=THREADS, span=SPAN, ahead=AHEAD)

    def _told(
        self,
        tensors: Iterable[tuple[str, Tensor]],
        files: Mapping[str, artefact.Shard],
        beat: Callable[[int], None],
    ) -> Iterator[tuple[str, Tensor]]:
        done = sum(shard.size for shard in files.values())
        for name, tensor in tensors:
            yield name, tensor
            done += tensor.nbytes
            beat(done)

    def _finish(
        self,
        home: Path,
        name: str,
        layout: shards.Layout,
        tensors: Iterable[tuple[str, Tensor]],
        files: dict[str, artefact.Shard],
    ) -> None:
        files[name] = shard = shards.write(home / name, layout, tensors)
        with (home / JOURNAL).open("a", encoding="utf-8") as journal:
            journal.write(json.dumps({"name": name, **shard.model_dump()}) + "\n")

    def _groups(self) -> dict[str, list[Weight]]:
        """The weights by the file that they go to: a block each, modulation, the rest."""
        groups: dict[str, list[Weight]] = {}
        for name, weight in self._weights.items():
            groups.setdefault(self._file_of(name), []).append(weight)
        return {
            name: sorted(group, key=lambda weight: (weight.place.file, weight.place.offset))
            for name, group in sorted(groups.items())
        }

    def _file_of(self, name: str) -> str:
        if not name.startswith(precision.BLOCKS):
            return f"{TRANSFORMER}/rest.safetensors"
        if name.rpartition(".")[0].endswith(precision.KEPT):
            return MODULATION
        number = int(name.removeprefix(precision.BLOCKS).partition(".")[0])
        return f"{TRANSFORMER}/block-{number:02}.safetensors"

    def _is_small(self, name: str) -> bool:
        module, _, kind = name.rpartition(".")
        return (
            kind == "weight"
            and len(self._weights[name].place.shape) == 2
            and precision.is_small(module, self._keep)
        )

    def _layout(self, group: Sequence[Weight]) -> shards.Layout:
        layout: dict[str, tuple[str, tuple[int, ...]]] = {}
        for weight in group:
            shape = weight.place.shape
            if self._is_small(weight.name):
                layout[weight.name] = "F8_E4M3", shape
                layout[f"{weight.name}_scale"] = "F32", (shape[0], 1)
            else:
                layout[weight.name] = "BF16", shape
        return layout

    def _tensors(self, reader: Reader, group: Sequence[Weight]) -> Iterator[tuple[str, Tensor]]:
        for stored in reader.tensors(group):
            name = stored.stored.name
            if not self._is_small(name):
                yield name, self._whole(stored)
                continue
            rounded, scale = precision.final(stored) or self._rounded(stored)
            yield name, rounded
            yield f"{name}_scale", scale

    def _rounded(self, stored: StoredTensor) -> tuple[Tensor, Tensor]:
        """A weight with all LoRAs added, as e4m3 with scales by row."""
        whole = stored.dense(torch.float32)
        return linears.by_row(lora.fused(whole, self._pairs_of(stored)))

    def _whole(self, stored: StoredTensor) -> Tensor:
        """A weight in bfloat16 with all LoRAs added."""
        pairs = self._pairs_of(stored)
        if not pairs:
            return stored.dense(torch.bfloat16)
        whole = stored.dense(torch.float32)
        pairs = [pair._replace(down=pair.down.to(whole), up=pair.up.to(whole)) for pair in pairs]
        return lora.fused(whole, pairs).bfloat16()

    def _pairs_of(self, stored: StoredTensor) -> list[lora.Pair]:
        module, _, kind = stored.stored.name.rpartition(".")
        return self._pairs.get(module, []) if kind == "weight" else []

    @torch.inference_mode()
    def _tables(self, reader: Reader) -> Iterator[tuple[str, Tensor]]:
        """Modulation at the steps of `STEPS`, in bfloat16 as cards compute it."""
        transformer = loading.empty(
            diffusers.QwenImageTransformer2DModel, self._model.configs[TRANSFORMER]
        )
        outside = self._groups()[f"{TRANSFORMER}/rest.safetensors"]
        transformer.load_state_dict(dict(self._tensors(reader, outside)), strict=False, assign=True)

        def weights(name: str) -> tuple[Tensor, Tensor]:
            wanted = [self._weights[f"{name}.weight"], self._weights[f"{name}.bias"]]
            tensors = dict(self._tensors(reader, wanted))
            return tensors[f"{name}.weight"], tensors[f"{name}.bias"]

        table = tables.Tables(transformer, weights)
        table.cover(times(torch.bfloat16), lambda done, of: None)
        yield from table.tensors()


def device_for_rounding() -> torch.device:
    """The card, if there is one with room beside whatever else runs there; else the CPU."""
    if torch.cuda.is_available():
        try:
            free, _ = torch.cuda.mem_get_info()
        except RuntimeError as error:  # too full for a context, or another's alone
            log.info("the card is left out: %s", error)
            free = 0
        if free >= CARD_ROOM:
            return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")


def times(dtype: torch.dtype) -> Tensor:
    """The times of the schedules that are tabled."""
    return tables.table_times(
        (
            schedule.schedule({}, "lightning", steps, 1, torch.device("cpu")).timesteps
            for steps in STEPS
        ),
        dtype,
    )
