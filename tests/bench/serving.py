"""Real processes for benchmarks: daemons, a bare baseline server, a cheap client."""

from __future__ import annotations

import asyncio
import os
import random
import socket
import statistics
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).parents[2]
PAPER = ROOT / "tests" / "fixtures" / "paper_engine"
CRLF = b"\r\n"


@contextmanager
def process(*command: str) -> Iterator[subprocess.Popen[bytes]]:
    """A Python process with the paper engine installed; killed at the end."""
    path = os.pathsep.join([str(ROOT), str(PAPER), os.environ.get("PYTHONPATH", "")])
    running = subprocess.Popen(
        [sys.executable, *command],
        env={**os.environ, "PYTHONPATH": path},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield running
    finally:
        running.kill()
        running.wait()


def daemon(folder: Path, port: int, *extra: str, engine: str = "paper") -> list[str]:
    """The command of a daemon on `folder`."""
    name = ["--engine.name", "paper"] if engine == "paper" else []
    return [
        "-m", "vellumd", "serve", "--store.dir", str(folder), "--plugins.http.port", str(port),
        *name, *extra,
    ]  # fmt: skip


def until_answer(port: int, path: str = "/healthz", wanted: int = 200) -> float:
    """Seconds until a GET answers with `wanted`."""
    began = time.perf_counter()
    request = f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n".encode()
    while time.perf_counter() - began < 120:
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
                connection.sendall(request)
                if connection.recv(64).split(b" ")[1] == str(wanted).encode():
                    return time.perf_counter() - began
        except (OSError, IndexError):
            pass
        time.sleep(0.002)
    raise TimeoutError(path)


def photos(count: int, kilobytes: int = 100) -> list[bytes]:
    """Different PNGs of about the same size, of noise that does not compress."""
    side = int((kilobytes * 1024 / 3) ** 0.5)
    source = random.Random(1)
    pictures = []
    for _ in range(count):
        buffer = BytesIO()
        Image.frombytes("RGB", (side, side), source.randbytes(side * side * 3)).save(buffer, "PNG")
        pictures.append(buffer.getvalue())
    return pictures


def unique(picture: bytes, number: int) -> bytes:
    """`picture`, a PNG, with a text chunk that makes its bytes the only ones of this kind."""
    chunk = b"tEXtnumber\0%d" % number
    text = struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk))
    return picture[:-12] + text + picture[-12:]  # before IEND


def request(path: str, picture: bytes) -> bytes:
    """A whole multipart request."""
    edge = b"----bench"
    body = CRLF.join([
        b"--" + edge, b'Content-Disposition: form-data; name="prompt"', b"", b"make it snow",
        b"--" + edge, b'Content-Disposition: form-data; name="images"; filename="a.png"',
        b"Content-Type: image/png", b"", picture, b"--" + edge + b"--", b"",
    ])  # fmt: skip
    head = CRLF.join([
        f"POST {path} HTTP/1.1".encode(), b"Host: 127.0.0.1",
        b"Content-Type: multipart/form-data; boundary=" + edge,
        f"Content-Length: {len(body)}".encode(), b"", b"",
    ])  # fmt: skip
    return head + body


async def flood(
    port: int, path: str, pictures: Sequence[bytes], total: int, clients: int
) -> list[float]:
    """Upload `total` different pictures over `clients` kept connections; seconds of each."""
    seconds: list[float] = []
    left = iter(range(total))

    async def send() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for number in left:
            picture = unique(pictures[number % len(pictures)], time.perf_counter_ns())
            data = request(path, picture)
            began = time.perf_counter()
            writer.write(data)
            head = await reader.readuntil(b"\r\n\r\n")
            assert head.split(b" ")[1][:1] == b"2", head
            (length,) = (line for line in head.lower().split(CRLF) if b"content-length" in line)
            await reader.readexactly(int(length.split(b":")[1]))
            seconds.append(time.perf_counter() - began)
        writer.close()

    async with asyncio.TaskGroup() as tasks:
        for _ in range(clients):
            tasks.create_task(send())
    return seconds


def p99(values: Sequence[float]) -> float:
    """The 99th percentile."""
    return statistics.quantiles(values, n=100, method="inclusive")[98]
