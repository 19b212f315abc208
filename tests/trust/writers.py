"""Nine kinds of program that put files into a folder, each in its own bad manner."""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path


@dataclass
class Job:
    """A file to write: where, what, and how long a pause is that outlasts settling."""

    target: Path
    data: bytes
    pause_s: float
    dice: random.Random

    @property
    def outside(self) -> Path:
        """A place on the same disk that nobody watches."""
        folder = self.target.parents[2] / "outside"
        folder.mkdir(exist_ok=True)
        return folder / self.target.name

    def pieces(self, count: int) -> list[tuple[int, bytes]]:
        """The data in pieces with their offsets."""
        size = -(-len(self.data) // count)
        return [(at, self.data[at : at + size]) for at in range(0, len(self.data), size)]


async def slow(job: Job) -> None:
    """One handle, piece by piece, without a long pause."""
    with job.target.open("wb", buffering=0) as file:
        for _, piece in job.pieces(12):
            file.write(piece)
            await asyncio.sleep(job.pause_s / 12)


async def bursts(job: Job) -> None:
    """Opened and closed for each piece."""
    job.target.touch()
    for _, piece in job.pieces(5):
        with job.target.open("ab") as file:
            file.write(piece)
        await asyncio.sleep(job.dice.uniform(0, job.pause_s / 4))


async def pauses(job: Job) -> None:
    """As bursts, with pauses in which everything looks settled."""
    for number, (_, piece) in enumerate(job.pieces(3)):
        if number:
            await asyncio.sleep(job.pause_s)
        with job.target.open("ab") as file:
            file.write(piece)


async def moved(job: Job) -> None:
    """Written elsewhere long ago and moved in."""
    job.outside.write_bytes(job.data)
    os.utime(job.outside, (1e9, 1e9))
    job.outside.rename(job.target)


async def renamed(job: Job) -> None:
    """Written beside under a temporary name."""
    aside = job.target.with_name(f".{job.target.name}.tmp")
    aside.write_bytes(job.data)
    await asyncio.sleep(job.pause_s / 4)
    aside.rename(job.target)


async def linked(job: Job) -> None:
    """A second name for a file that lies elsewhere."""
    job.outside.write_bytes(job.data)
    os.link(job.outside, job.target)


async def rewritten(job: Job) -> None:
    """Another whole picture first, then this one in the same file."""
    job.target.write_bytes(job.data[: len(job.data) // 2])
    await asyncio.sleep(job.pause_s / 4)
    with job.target.open("r+b") as file:
        file.truncate()
        await asyncio.sleep(job.pause_s)
        file.write(job.data)


async def given_up(job: Job) -> None:
    """A part, deleted after a while; the whole of it later."""
    job.target.write_bytes(job.data[: len(job.data) // 2])
    await asyncio.sleep(job.pause_s)
    job.target.unlink()
    await asyncio.sleep(job.pause_s / 2)
    job.target.write_bytes(job.data)


async def sized(job: Job) -> None:
    """The size first, zeros in it, and mtime held still until the end: Samba."""
    with job.target.open("wb") as file:
        file.truncate(len(job.data))
    os.utime(job.target, (1e9, 1e9))
    for offset, piece in job.pieces(3):
        await asyncio.sleep(job.pause_s)
        with job.target.open("r+b") as file:
            file.seek(offset)
            file.write(piece)
        os.utime(job.target, (1e9, 1e9))


KINDS: tuple[Callable[[Job], Awaitable[None]], ...] = (
    slow, bursts, pauses, moved, renamed, linked, rewritten, given_up, sized,
)  # fmt: skip


async def write(kind: Callable[[Job], Awaitable[None]], job: Job) -> float:
    """Let a writer write; the wall-clock time of the last byte."""
    await kind(job)
    return time.time()
