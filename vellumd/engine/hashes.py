"""Hashes of large files, read beside other work."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

THREADS = 2
"""Files that are read at once."""
PIECE = 1 << 20
"""Bytes that are read at a time."""


def told(file: Path) -> str:
    """What a file is called: with its folder, since LoRAs of diffusers all have one name."""
    return f"{file.parent.name}/{file.name}"


class Hashes:
    """The SHA-256 of files, by folder and name. As a context, it ends with what it runs beside.

    Whoever stops a conversion does not wait for them: a minute for 41 GB, and several where
    the processor has no instruction for it.
    """

    def __init__(self, files: Sequence[Path]) -> None:
        self._over = threading.Event()
        self._pool = ThreadPoolExecutor(THREADS, "hash")
        self._running = {told(file): self._pool.submit(self._hash, file) for file in files}
        self._pool.shutdown(wait=False)  # threads end with the last file

    def __enter__(self) -> Hashes:
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._pool.shutdown(cancel_futures=True)

    def found(self) -> dict[str, str]:
        """Those of all files by what `told` calls them, in hex. Waits; raises `OSError`."""
        return {name: running.result() for name, running in self._running.items()}

    def _hash(self, file: Path) -> str:
        digest, buffer = hashlib.sha256(), memoryview(bytearray(PIECE))
        with file.open("rb", buffering=0) as opened:
            while not self._over.is_set() and (count := opened.readinto(buffer)):
                digest.update(buffer[:count])
        return digest.hexdigest()
