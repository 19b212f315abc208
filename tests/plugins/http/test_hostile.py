"""Bad input: every one a coded answer, no path told, no memory taken."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import os
import re
import struct
import subprocess
import sys
import zlib
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from aiohttp import ClientSession, FormData
from PIL import Image

from vellumd_http import openapi
from vellumd_http.openapi import OPERATIONS

from .conftest import PNG, Door, OpenDoor, b64, png

GOOD = {"images": [b64(PNG)], "prompt": "x"}


def bomb() -> bytes:
    """A PNG of 13,300 x 13,300 pixels in a few kilobytes."""
    file = io.BytesIO()
    Image.new("1", (13_300, 13_300)).save(file, "PNG", optimize=True)
    return file.getvalue()


def lying_png() -> bytes:
    """A header that promises two billion pixels with nothing behind it."""
    head = b"IHDR" + struct.pack(">IIBBBBB", 2**16, 2**15, 8, 2, 0, 0, 0)
    end = struct.pack(">I", zlib.crc32(head))
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + head + end


SVG = b'<svg xmlns="http://www.w3.org/2000/svg" width="32" height="32"/>'
BAD: dict[str, tuple[dict[str, Any], int, str]] = {
    "no pictures": ({"images": []}, 400, "too_many_images"),
    "20 pictures": ({"images": [b64(PNG)] * 20}, 400, "too_many_images"),
    "pictures are null": ({"images": None}, 400, "too_many_images"),
    "pictures are a number": ({"images": 5}, 400, "bad_request"),
    "bad base64": ({"images": ["@@@@"]}, 400, "bad_request"),
    "a path": ({"images": ["/etc/passwd"]}, 400, "bad_image"),
    "a URL": ({"images": ["http://127.0.0.1/a.png"]}, 400, "bad_request"),
    "empty picture": ({"images": [""]}, 400, "bad_image"),
    "SVG as PNG": ({"images": ["data:image/png;base64," + b64(SVG)]}, 400, "unsupported_format"),
    "PostScript": ({"images": [b64(b"%!PS-Adobe-3.0 EPSF-3.0\n")]}, 400, "unsupported_format"),
    "Photoshop": ({"images": [b64(b"8BPS\x00\x01" + bytes(40))]}, 400, "unsupported_format"),
    "half a picture": ({"images": [b64(PNG[: len(PNG) // 2])]}, 400, "bad_image"),
    "1x1": ({"images": [b64(png(1, 1))]}, 400, "bad_image"),
    "too many pixels": ({"images": [b64(bomb())]}, 413, "image_too_large"),
    "lying header": ({"images": [b64(lying_png())]}, 400, "bad_image"),
    "unknown hash": ({"images": ["sha256:" + "0" * 64]}, 404, "not_found"),
    "bad mask": ({"mask": "@"}, 400, "bad_request"),
    "no prompt": ({"prompt": None}, 400, "bad_request"),
    "empty prompt": ({"prompt": ""}, 400, "bad_request"),
    "blank prompt": ({"prompt": " \n"}, 400, "bad_request"),
    "100 KB prompt": ({"prompt": "x" * 100_000}, 400, "bad_request"),
    "prompt is a list": ({"prompt": ["x"]}, 400, "bad_request"),
    "NUL in the prompt": ({"prompt": "a\0b"}, 400, "bad_request"),
    "NUL in the batch": ({"batch": "a\0b"}, 400, "bad_request"),
    "half a surrogate": ({"prompt": "\ud800"}, 400, "bad_request"),
    "steps 0": ({"steps": 0}, 400, "bad_request"),
    "steps 10,000": ({"steps": 10_000}, 400, "bad_request"),
    "steps true": ({"num_steps": "many"}, 400, "bad_request"),
    "CFG -1": ({"true_cfg_scale": -1}, 400, "bad_request"),
    "CFG NaN": ({"true_cfg_scale": float("nan")}, 400, "bad_request"),
    "CFG 1e999": ({"true_cfg_scale": "1e999"}, 400, "bad_request"),
    "n 5": ({"n": 5}, 400, "bad_request"),
    "seed 2**64": ({"seed": 2**64}, 400, "bad_request"),
    "size huge": ({"size": "99999x99999"}, 400, "bad_size"),
    "size words": ({"size": "big"}, 400, "bad_size"),
    "unknown preset": ({"preset": "../../etc/passwd"}, 400, "unknown_preset"),
    "unknown tier": ({"tier": "warp"}, 400, "unknown_tier"),
    "unknown LoRA": ({"loras": [{"name": "nobody"}]}, 400, "unknown_lora"),
    "LoRA path": ({"loras": [{"name": "../../etc/passwd"}]}, 400, "bad_request"),
    "meta too big": ({"meta": "x" * 5000}, 400, "bad_request"),
    "meta too deep": ({"meta": json.loads("[" * 50 + "]" * 50)}, 400, "bad_request"),
    "priority": ({"priority": 101}, 400, "bad_request"),
}


@pytest.fixture(scope="module")
def documented() -> dict[str, list[str]]:
    """Codes that the description lists, by path."""
    return {one.path: openapi.codes_of(one) for one in OPERATIONS if one.method == "post"}


@pytest.mark.parametrize("path", ["/v1/jobs", "/generate"])
async def test_every_bad_edit_has_its_code(
    door: Door, path: str, documented: dict[str, list[str]]
) -> None:
    """The listed status and code, documented, naming neither path nor exception."""
    wrong = []
    for what, (fields, status, code) in BAD.items():
        async with door.ask("POST", path, data=json.dumps({**GOOD, **fields}).encode()) as got:
            text = await got.text()
            answer = json.loads(text)
        if (got.status, answer["code"]) != (status, code):
            wrong.append((what, got.status, text[:200]))
        assert code in documented[path]
        for leak in ("Traceback", "/work", "/tmp", "site-packages", "passwd/"):
            assert leak not in text, what
        assert not re.search("0x[0-9a-f]{6}", text), what
    assert wrong == []
    assert (await door.json("GET", "/v1/jobs"))["jobs"] == []


BODIES: dict[str, bytes] = {
    "nothing": b"",
    "not JSON": b"hello",
    "a list": b"[]",
    "NaN": b'{"true_cfg_scale": NaN}',
    "deep": b"[" * 1_000_000,
    "many elements": b'{"meta": [' + b"{}," * 1_000_000 + b"1]}",
    "long number": b'{"seed": ' + b"9" * 1_000_000 + b"}",
    "UTF-16 rubbish": b"\xff\xfe{\x00",
    "bytes": bytes(range(256)) * 100,
}


async def test_every_bad_body_is_a_bad_request(door: Door) -> None:
    """On every route that takes JSON."""
    for what, body in BODIES.items():
        for method, path in (("POST", "/v1/jobs"), ("POST", "/generate"), ("PATCH", "/v1/jobs/0")):
            async with door.ask(method, path, data=io.BytesIO(body)) as got:
                assert (got.status, (await got.json())["code"]) == (400, "bad_request"), what


async def test_unknown_native_fields_are_named(door: Door) -> None:
    """In JSON and in forms, files included; nothing is accepted."""
    answer = await door.json("POST", "/v1/jobs", 400, json={**GOOD, "strength": 1})
    assert "strength" in answer["detail"]
    for filename in (None, "a.bin"):
        form = FormData()
        form.add_field("images", PNG, filename="a.png")
        form.add_field("prompt", "x")
        form.add_field("attachment", "x" * 100_000, filename=filename)
        answer = await door.json("POST", "/v1/jobs", 400, data=form)
        assert "attachment" in answer["detail"]
    assert (await door.json("GET", "/v1/jobs"))["jobs"] == []


WRONG: dict[str, tuple[bytes, str]] = {
    "cut off": (PNG[:-30], "bad_image"),
    "SVG": (SVG, "unsupported_format"),
    "bomb": (bomb(), "image_too_large"),
    "unknown hash": (b"sha256:" + b"0" * 64, "not_found"),
    "no base64": (b"data:image/png;base64,@", "bad_request"),
}


async def test_an_error_names_its_picture(door: Door) -> None:
    """The second of three, or the mask; in JSON and in a form alike."""
    for what, (data, code) in WRONG.items():
        text = data.decode() if data[:5] in (b"sha25", b"data:") else b64(data)
        for field, pictures in (("images.1", (PNG, data, PNG)), ("mask", (PNG,))):
            edit: dict[str, Any] = {"images": [b64(PNG)], "mask": text, "prompt": "x"}
            form = FormData()
            form.add_field("prompt", "x")
            for picture in pictures:
                form.add_field("images", picture, filename="a.png")
            if field == "mask":
                form.add_field("mask", data, filename="m.png")
            else:
                edit = {"images": [b64(PNG), text, b64(PNG)], "prompt": "x"}
            bodies: list[dict[str, Any]] = [{"json": edit}, {"data": form}]
            for body in bodies:
                async with door.ask("POST", "/v1/jobs", **body) as got:
                    answer = await got.json()
                assert answer["code"] == code, what
                assert answer["detail"].startswith(f"{field}: "), what


async def test_no_url_is_fetched(door: Door) -> None:
    """In no field, spelling or kind of body does a URL make the daemon call anybody."""
    calls = 0

    def called(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal calls
        calls += 1
        writer.close()

    async with await asyncio.start_server(called, "127.0.0.1", 0) as trap:
        port = trap.sockets[0].getsockname()[1]
        for head in ("http", "HTTPS", "ftp", "file", "gopher", "data:image/png;url=http", "//"):
            url = f"{head}://127.0.0.1:{port}/a.png"
            edits: list[dict[str, Any]] = [
                {"images": [url]}, {"image": url}, {"images": [{"url": url}]}, {"mask": url},
                {"images": [{"type": "image_url", "image_url": {"url": url}}]},
            ]  # fmt: skip
            for edit in edits:
                for path in ("/v1/jobs", "/generate"):
                    await door.json("POST", path, 400, json={**GOOD, **edit})
            form = FormData()
            form.add_field("prompt", "x")
            form.add_field("images", url)
            await door.json("POST", "/v1/jobs", 400, data=form)
            await door.json("POST", "/v1/inputs", 400, data=url.encode())
        assert calls == 0
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        async with asyncio.timeout(10):
            while not calls:
                await asyncio.sleep(0.01)
        writer.close()


async def test_an_empty_mask_part_is_no_mask(door: Door) -> None:
    """As a browser's form sends it where no file was chosen."""
    form = FormData()
    form.add_field("images", PNG, filename="a.png")
    form.add_field("prompt", "x")
    form.add_field("mask", b"", filename="", content_type="application/octet-stream")
    job = await door.json("POST", "/v1/jobs", 202, data=form)
    assert job["request"]["mask"] is None


async def test_too_many_files_end_the_upload(door: Door) -> None:
    """The fifth picture is refused, whatever comes behind it."""
    form = FormData()
    form.add_field("prompt", "x")
    for _ in range(20):
        form.add_field("images", PNG, filename="a.png")
    assert (await door.json("POST", "/v1/jobs", 400, data=form))["code"] == "too_many_images"


async def test_no_staged_rubbish_stays(door: Door) -> None:
    """Refused uploads leave nothing in the spool."""
    staged = door.daemon.settings.store.dir / "spool" / "staged"
    for data in (b"", b"hello", PNG[:50], SVG):
        await door.json("POST", "/v1/inputs", 400, data=data)
    form = FormData()
    form.add_field("images", b"rubbish", filename="a.png")
    await door.json("POST", "/v1/jobs", 400, data=form)
    reader, writer = await asyncio.open_connection("127.0.0.1", door.port)
    writer.write(
        b"POST /v1/inputs HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9999\r\n\r\n" + PNG
    )
    await writer.drain()
    writer.write_eof()
    await reader.read()
    writer.close()
    async with asyncio.timeout(10):
        while list(staged.iterdir()):
            await asyncio.sleep(0.01)


async def test_an_upload_beyond_the_limit_is_refused(open_door: OpenDoor) -> None:
    """By max_body_mb, on every uploading route."""
    async with open_door(max_body_mb=1) as door:
        big = bytes((1 << 20) + 1)
        form = FormData()
        form.add_field("images", io.BytesIO(big), filename="a.png")
        bodies: list[tuple[str, Any]] = [
            ("/v1/inputs", io.BytesIO(big)), ("/generate", io.BytesIO(big)), ("/v1/jobs", form),
        ]  # fmt: skip
        for path, data in bodies:
            answer = await door.json("POST", path, 413, data=data)
            assert answer["code"] == "payload_too_large"


HOST = b"Host: localhost\r\n"
POST = b"POST /v1/jobs HTTP/1.1\r\n" + HOST
RAW: dict[str, tuple[bytes, bytes]] = {
    "no Host": (b"GET /healthz HTTP/1.0\r\n\r\n", b" 403 "),
    "two Hosts": (b"GET / HTTP/1.1\r\n" + HOST + b"Host: evil.example\r\n\r\n", b" 40"),
    "absolute target": (b"GET http://evil.example/ HTTP/1.1\r\n" + HOST + b"\r\n", b" 403 "),
    "dots": (b"GET /static/../plugin.py HTTP/1.1\r\n" + HOST + b"\r\n", b" 404 "),
    "encoded dots": (b"GET /%2e%2e/%2e%2e/etc/passwd HTTP/1.1\r\n" + HOST + b"\r\n", b" 404 "),
    "backslashes": (b"GET /..\\..\\etc HTTP/1.1\r\n" + HOST + b"\r\n", b" 40"),
    "no path": (b"GET evil HTTP/1.1\r\n" + HOST + b"\r\n", b" 40"),
    "smuggling": (
        POST + b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b" 400 ",
    ),
    "two lengths": (POST + b"Content-Length: 3\r\nContent-Length: 4\r\n\r\nabcd", b" 400 "),
    "negative length": (POST + b"Content-Length: -1\r\n\r\n", b" 400 "),
    "bad chunk": (POST + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n", b" 400 "),
    "null origin": (POST + b"Origin: null\r\nContent-Length: 0\r\n\r\n", b" 403 "),
    "long header": (POST + b"X: " + b"y" * 100_000 + b"\r\n\r\n", b" 400 "),
    "not HTTP": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", b" 400 "),
}


async def test_hostile_requests_byte_by_byte(door: Door) -> None:
    """No client library would send these; each has its answer and the door stays open."""
    for what, (sent, expected) in RAW.items():
        status, headers, answer = await asyncio.wait_for(exchange(door.port, sent), 20)
        assert expected in status, what
        assert answer.keys() == {"type", "title", "status", "detail", "code", "retryable"}, what
        codes = ("bad_request", "not_found", "forbidden_host", "forbidden_origin")
        assert answer["code"] in codes, what
        assert "server: vellumd" in headers, what
        assert "x-content-type-options: nosniff" in headers, what
        assert any("sandbox" in line for line in headers), what
        assert (await door.json("GET", "/healthz"))["status"] == "alive"


async def exchange(port: int, sent: bytes) -> tuple[bytes, list[str], dict[str, Any]]:
    """Status line, headers and JSON of the answer to `sent`."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(sent)
    status = await reader.readline()
    headers = (await reader.readuntil(b"\r\n\r\n")).decode().lower().split("\r\n")
    length = next(line for line in headers if line.startswith("content-length: "))
    answer: dict[str, Any] = json.loads(await reader.readexactly(int(length[16:])))
    writer.close()
    return status, headers, answer


async def test_a_form_of_a_foreign_page_changes_nothing(door: Door) -> None:
    """What any web page could send without asking the browser's leave."""
    headers = {"Origin": "https://evil.example", "Content-Type": "text/plain"}
    for path in ("/v1/jobs", "/generate"):
        async with door.ask("POST", path, data=json.dumps(GOOD), headers=headers) as got:
            assert got.status == 403
    assert (await door.json("GET", "/v1/jobs"))["jobs"] == []


# memory, measured in a process of its own

SERVE = """
import asyncio, sys
from pathlib import Path
import paper_engine
from vellumd import TransportSpec
from vellumd.daemon import Daemon
from vellumd.plugins import Plugins
from vellumd.settings import Settings
from vellumd_http.plugin import vellumd_transports

async def main():
    http = {spec.name: spec for spec in vellumd_transports()}
    paper = {spec.name: spec for spec in paper_engine.vellumd_engines()}
    settings = Settings.model_validate({
        "engine": {"name": "paper"}, "store": {"dir": Path(sys.argv[1])},
        "plugins": {"http": {"port": 0}},
    })
    async with Daemon(settings, Plugins((), http, paper, ())).running() as daemon:
        print(daemon.urls[0], flush=True)
        await asyncio.Event().wait()

asyncio.run(main())
"""


@pytest.fixture
def daemon_process(tmp_path: Path) -> Iterator[tuple[psutil.Process, str]]:
    """A daemon in its own process, and its address."""
    with subprocess.Popen(
        [sys.executable, "-c", SERVE, str(tmp_path / "data")],
        stdout=subprocess.PIPE, text=True, env=dict(os.environ),
    ) as process:  # fmt: skip
        try:
            assert process.stdout is not None
            yield psutil.Process(process.pid), process.stdout.readline().strip()
        finally:
            process.terminate()


def noise(width: int, height: int) -> bytes:
    """A picture that does not compress."""
    file = io.BytesIO()
    picture = Image.frombytes("RGB", (width, height), os.urandom(width * height * 3))
    picture.save(file, "PNG", compress_level=0)
    return file.getvalue()


JSON = {"Content-Type": "application/json"}
GZIP = {**JSON, "Content-Encoding": "gzip"}
FORM = {"Content-Type": "multipart/form-data; boundary=B"}


def edit_of(picture: bytes) -> bytes:
    return json.dumps({"images": [b64(picture)], "prompt": "x"}).encode()


def part(name: str, data: bytes) -> bytes:
    head = f'--B\r\nContent-Disposition: form-data; name="{name}"; filename="a.png"\r\n\r\n'
    return head.encode() + data + b"\r\n"


def heavy() -> Iterator[tuple[str, bytes, dict[str, str], int]]:
    """Bodies that would cost much memory if read carelessly, and the status they deserve."""
    smile = b'{"prompt": "\xf0\x9f\x98\x80'
    end = part("prompt", b"x") + b"--B--\r\n"
    yield "32 MiB of base64", edit_of(noise(2800, 2900)), JSON, 202
    yield "wide text", smile + b"x" * (31 << 20) + b'"}', JSON, 413
    yield "wide, shorter", smile + b"x" * (17 << 20) + b'"}', JSON, 400
    yield "lists", b'{"meta": [' + b"[]," * (10 << 20) + b"1]}", JSON, 400
    yield "escapes", b'{"prompt": "' + b"\\u00e9" * (5 << 20) + b'"}', JSON, 400
    yield "90 MB picture", part("images", noise(5000, 6000)) + end, FORM, 202
    yield "100 MB of rubbish", part("images", bytes(100 << 20)) + end, FORM, 400
    yield "10,000 parts", part("batch", b"x") * 10_000 + end, FORM, 400
    yield "newlines", b"\n" * (8 << 20) + part("prompt", b"x") + end, FORM, 400
    yield "30 MB field", part("prompt", b"x" * (30 << 20)) + end, FORM, 400
    yield "pixel bomb", edit_of(bomb()), JSON, 413
    yield "gzip bomb", zlib.compress(bytes(64 << 20), wbits=31), GZIP, 400


async def peak(process: psutil.Process, stop: asyncio.Event) -> int:
    """The highest resident size in bytes until `stop`, looked at every few milliseconds."""
    highest = 0
    while not stop.is_set():
        highest = max(highest, process.memory_info().rss)
        await asyncio.sleep(0.004)
    return highest


async def stall(url: str, stop: asyncio.Event) -> float:
    """The longest in seconds that a request beside it waited for the loop, until `stop`."""
    longest = 0.0
    clock = asyncio.get_running_loop().time
    async with ClientSession() as client:
        while not stop.is_set():
            began = clock()
            async with client.get(f"{url}/healthz") as got:
                assert got.status == 200
            longest = max(longest, clock() - began)
            await asyncio.sleep(0.004)
    return longest


async def chunked(data: bytes) -> AsyncIterator[bytes]:
    for start in range(0, len(data), 1 << 18):
        yield data[start : start + (1 << 18)]


async def test_no_request_takes_much_memory(
    daemon_process: tuple[psutil.Process, str],
) -> None:
    """At most 256 MB more than before it, and 2 s of the loop, for any single request.

    Of the loop in the best of three tries: others use the machine too.
    """
    process, url = daemon_process
    grown: dict[str, int] = {}
    stalled: dict[str, float] = {}
    async with ClientSession() as client:
        async with client.post(f"{url}/generate", json=GOOD) as got:
            assert got.status == 200
        before = process.memory_info().rss
        for what, data, headers, status in heavy():
            most_s = 0.5 if what == "newlines" else 2  # 1.8 where each of them is read
            for _ in range(3):
                stop = asyncio.Event()
                async with asyncio.TaskGroup() as tasks:
                    watching = tasks.create_task(peak(process, stop))
                    waiting = tasks.create_task(stall(url, stop))
                    body = chunked(data)
                    async with client.post(f"{url}/v1/jobs", data=body, headers=headers) as got:
                        assert got.status == status, (what, await got.text())
                    stop.set()
                grown[what] = max(grown.get(what, 0), (watching.result() - before) >> 20)
                stalled[what] = round(waiting.result(), 2)
                if stalled[what] <= most_s:
                    break
            assert stalled[what] <= most_s, stalled
    print(grown, stalled)
    assert max(grown.values()) <= 256, grown


def test_the_bombs_are_what_they_claim() -> None:
    """So the tests above test something."""
    assert len(bomb()) < 1 << 20
    assert Image.open(io.BytesIO(base64.b64decode(b64(noise(20, 20))))).size == (20, 20)
