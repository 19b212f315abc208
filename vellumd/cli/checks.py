"""What `vellumd doctor` looks at: interpreter, packages, card, model, LoRAs, folders.

Nothing here imports torch: versions come from package metadata, weights from file
headers, and where torch itself must speak a short child process does.
"""

from __future__ import annotations

import json
import platform as system
import re
import shutil
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

from vellumd import errors, model_card, platform
from vellumd.hookspecs import Check
from vellumd.settings import Settings

PACKAGES = {
    "aiohttp": "3.14.3",
    "paho-mqtt": "2.2",
    "pillow": "12.3",
    "pluggy": "1.5",
    "prometheus-client": "0.22",
    "pydantic": "2.11",
    "pydantic-settings": "2.8",
    "watchdog": "7.1",
}
"""Least versions of what every install needs; pyproject.toml holds the same."""

ENGINE_PACKAGES = {
    "accelerate": "1.10",
    "diffusers": "0.42.1",
    "numpy": "2",
    "peft": "0.17",
    "safetensors": "0.6",
    "torch": "2.10",
    "transformers": "5.17",
}
"""Least versions of what an engine needs: the extra `engine`."""

HEADER_MAX = 100 << 20
"""Largest safetensors header in bytes that is believed."""

GB = 10**9

TORCH_SAYS = """
import json, torch
cuda = torch.cuda.is_available()
print(json.dumps([torch.version.cuda, cuda, torch.cuda.get_device_name(0) if cuda else None]))
"""


def interpreter() -> Iterator[Check]:
    """Python and the packages, by their metadata."""
    ok = sys.version_info >= (3, 11)
    yield Check(ok, f"Python {system.python_version()} on {system.platform(terse=True)}")
    for name, least in PACKAGES.items():
        yield _package(name, least, "reinstall vellumd")
    for name, least in ENGINE_PACKAGES.items():
        yield _package(name, least, "install vellumd[engine]; without it vellumd is a client only")


def _package(name: str, least: str, remedy: str) -> Check:
    try:
        version = metadata.version(name)
    except metadata.PackageNotFoundError:
        return Check(False, f"{name} is missing: {remedy}")
    if _numbers(version) < _numbers(least):
        return Check(False, f"{name} {version} is older than {least}: {remedy}")
    return Check(True, f"{name} {version}")


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", version.partition("+")[0])[:3])


def card() -> Iterator[Check]:
    """Whether torch can use the NVIDIA card that this machine has; asks a child process."""
    if not _installed("torch"):
        return
    try:
        done = subprocess.run(
            [sys.executable, "-c", TORCH_SAYS], capture_output=True, timeout=120, check=True
        )
        version, usable, name = json.loads(done.stdout)
    except (subprocess.SubprocessError, ValueError, OSError):
        yield Check(False, "torch cannot be imported: reinstall it (make setup)")
        return
    driver = platform.nvidia_driver()
    if usable:
        yield Check(True, f"torch uses {name} with CUDA {version}")
    elif driver and not version:
        yield Check(False, "an NVIDIA driver, but a torch without CUDA: uninstall it, make setup")
    elif driver:
        yield Check(False, f"torch with CUDA {version} cannot use the card: update the driver")
    else:
        yield Check(True, "no NVIDIA driver: edits run on the CPU, fit for the demo only")


def _installed(name: str) -> bool:
    try:
        return bool(metadata.version(name))
    except metadata.PackageNotFoundError:
        return False


def positions() -> Iterator[Check]:
    """Whether the encoder is told where pictures are (mm_token_type_ids of transformers 5)."""
    if _installed("transformers"):
        ok = _numbers(metadata.version("transformers")) >= (5,)
        text = "knows" if ok else "is too old for"
        yield Check(ok, f"transformers {text} mm_token_type_ids, which place pictures in prompts")


def model(settings: Settings) -> Iterator[Check]:
    """The model folder: card, parts, weights' headers, zero_cond_t."""
    try:
        found = model_card.of(settings.engine)
    except errors.VellumError as error:
        yield Check(False, f"{error.message} {error.remedy}")
        return
    if found.demo:
        yield Check(True, f"model demo ({found.note}); set engine.model to a model folder for more")
        return
    folder = Path(settings.engine.model)
    yield Check(True, f"model {found.name}")
    yield from _parts(folder)
    yield _zero_cond_t(folder / "transformer" / "config.json")


def _parts(folder: Path) -> Iterator[Check]:
    index = _json(folder / "model_index.json")
    if index is None:
        yield Check(False, "model_index.json is missing or damaged: this is no diffusers folder")
        return
    parts = [name for name, value in index.items() if isinstance(value, list) and value[0]]
    for part in parts:
        files = sorted((folder / part).glob("*.safetensors"))
        missing = _shards(folder / part) - {file.name for file in files}
        if not (folder / part).is_dir():
            yield Check(False, f"{part}: its folder is missing; download it again")
        elif missing:
            yield Check(False, f"{part}: {len(missing)} weight files are missing; download them")
        elif bad := [file.name for file in files if not header(file)]:
            yield Check(False, f"{part}: {', '.join(bad)} damaged; download again")
        else:
            size = sum(file.stat().st_size for file in files) / 1e9
            yield Check(True, f"{part}: {size:.1f} GB of weights" if files else f"{part}: there")


def _shards(part: Path) -> set[str]:
    """The weight files that the part's index names."""
    indexes = (_json(file) or {} for file in part.glob("*.safetensors.index.json"))
    return {str(name) for index in indexes for name in index.get("weight_map", {}).values()}


def _json(file: Path) -> dict[str, Any] | None:
    try:
        value = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None


def header(file: Path) -> dict[str, Any] | None:
    """The header of a safetensors file; None if it is damaged or the file is cut short.

    Eight bytes of little-endian length, then JSON: tensor name to dtype, shape and
    offsets into the rest (safetensors' format description).
    """
    size = file.stat().st_size
    with file.open("rb") as opened:
        head = opened.read(8)
        length = struct.unpack("<Q", head)[0] if len(head) == 8 else 0
        if not 0 < length <= min(HEADER_MAX, size - 8):
            return None
        try:
            tensors = json.loads(opened.read(length))
            ends = [t["data_offsets"][1] for n, t in tensors.items() if n != "__metadata__"]
        except (ValueError, KeyError, TypeError, AttributeError, IndexError):
            return None
    return tensors if max(ends, default=0) == size - 8 - length else None


def _zero_cond_t(config: Path) -> Check:
    """2511 needs the flag; a transformer without it silently edits worse."""
    if (_json(config) or {}).get("zero_cond_t") is True:
        return Check(True, "zero_cond_t is set in transformer/config.json")
    return Check(
        False, "zero_cond_t is not true in transformer/config.json: 2511 edits badly without it"
    )


def loras(settings: Settings) -> Iterator[Check]:
    """Files of the roles, and whether role, file and scheduler fit together."""
    try:
        found = model_card.of(settings.engine)
    except errors.VellumError:
        return
    if found.demo and not settings.engine.loras:
        return
    for role in sorted({*found.loras, *settings.engine.loras}):
        file = model_card.find_lora(Path(settings.engine.model), found, settings.engine.loras, role)
        yield _lora(role, file, found)


def _lora(role: str, file: Path | None, found: model_card.ModelCard) -> Check:
    if file is None:
        return Check(True, f"LoRA {role}: no file, presets that name it cannot be used")
    if not file.is_file():
        return Check(False, f"LoRA {role}: its file is missing; correct [engine.loras]")
    tensors = header(file)
    if not tensors or not any(".lora" in name for name in tensors):
        return Check(False, f"LoRA {role}: {file.name} is damaged or no LoRA")
    steps = re.search(r"lightning.*?(\d+)-?steps", file.name, re.IGNORECASE)
    scheduler = found.loras[role].scheduler if role in found.loras else "base"
    if steps and scheduler != "lightning":
        return Check(False, f"LoRA {role}: a Lightning file needs the role lightning-{steps[1]}")
    if steps and role.rpartition("-")[2] != steps[1]:
        return Check(False, f"LoRA {role}: the file is made for {steps[1]} steps")
    return Check(True, f"LoRA {role}: {file.name}, {scheduler} scheduler")


def store(settings: Settings) -> Iterator[Check]:
    """Whether the data folder can be made, written, locked and fsynced, and has room."""
    wanted = settings.store.dir
    there = next(folder for folder in (wanted, *wanted.absolute().parents) if folder.exists())
    try:
        with tempfile.TemporaryDirectory(prefix=".vellumd-doctor-", dir=there) as trial:
            yield from _disk(wanted, Path(trial))
            free = shutil.disk_usage(there).free / GB
    except OSError as error:
        yield Check(False, f"{wanted} cannot be written ({error.strerror}): correct store.dir")
        return
    reserve = settings.store.reserve_gb
    text = f"{free:.1f} GB free, {reserve:g} GB of them kept free (store.reserve_gb)"
    remedy = "" if free > reserve else ": no job is accepted; free some, or lower the reserve"
    yield Check(free > reserve, text + remedy)


def _disk(wanted: Path, trial: Path) -> Iterator[Check]:
    """What the folder's disk has to be able to do, tried in a folder that goes away."""
    began = time.perf_counter()
    platform.write_durably(trial / "file", bytes(1 << 16))
    platform.fsync_dir(trial)
    milliseconds = (time.perf_counter() - began) * 1000
    yield Check(True, f"{wanted} can be written; fsync of 64 KiB took {milliseconds:.1f} ms")
    lock = platform.lock_folder(trial)
    try:
        platform.lock_folder(trial).release()
    except platform.LockedError:
        yield Check(True, "locks hold: a second daemon would be refused")
    else:
        yield Check(False, "locks do not hold there: choose a store.dir on a disk of this machine")
    finally:
        lock.release()
