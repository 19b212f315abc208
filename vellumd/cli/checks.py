"""What `vellumd doctor` looks at: interpreter, packages, card, folders.

Nothing here imports torch: versions come from package metadata, and where torch itself
must speak a short child process does.
"""

from __future__ import annotations

import json
import platform as system
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

from vellumd import platform
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

GB = 10**9

TORCH_SAYS = """
import json, torch
cuda = torch.cuda.is_available()
card = torch.cuda.get_device_properties(0) if cuda else None
found = card and [card.name, card.total_memory, [card.major, card.minor]]
print(json.dumps([torch.version.cuda, found]))
"""


class Card(NamedTuple):
    """A card as torch knows it: bytes of its memory, and its compute capability."""

    name: str
    memory: int
    capability: tuple[int, int]


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
        version, found = torch_says()
    except (subprocess.SubprocessError, ValueError, OSError):
        yield Check(False, "torch cannot be imported: reinstall it (make setup)")
        return
    driver = platform.nvidia_driver()
    if found:
        size = found.memory / GB
        yield Check(True, f"torch uses {found.name}, {size:.0f} GB, with CUDA {version}")
    elif driver and not version:
        yield Check(False, "an NVIDIA driver, but a torch without CUDA: uninstall it, make setup")
    elif driver:
        yield Check(False, f"torch with CUDA {version} cannot use the card: update the driver")
    else:
        yield Check(True, "no NVIDIA driver: edits run on the CPU, fit for the demo only")


def torch_says() -> tuple[str | None, Card | None]:
    """Torch's version of CUDA, and the card that it can use, from a child process.

    Raises `SubprocessError`, `OSError` or `ValueError` where torch cannot be imported.
    """
    done = subprocess.run(
        [sys.executable, "-c", TORCH_SAYS], capture_output=True, timeout=120, check=True
    )
    version, found = json.loads(done.stdout)
    return version, found and Card(found[0], found[1], tuple(found[2]))


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
