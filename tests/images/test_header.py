"""What is taken, what is refused with which error, and what refusing costs."""

from __future__ import annotations

import random
import struct
import subprocess
import sys
import time
import zlib
from pathlib import Path
from typing import Any

import pillow_heif
import pytest
from PIL import Image

from tests.images import samples
from vellumd import errors, images
from vellumd.settings import Limits

LIMITS = Limits()
WHOLE = samples.whole()
JPEG, PNG, WEBP, AVIF = (WHOLE[name] for name in ("jpeg", "png", "webp", "avif"))


def _inspect(tmp_path: Path, data: bytes, limits: Limits = LIMITS) -> images.Header:
    path = tmp_path / "picture.png"
    path.unlink(missing_ok=True)  # ext4 flushes a file that is written over
    path.write_bytes(data)
    return images.inspect(path, limits)


@pytest.mark.parametrize("name", WHOLE)
def test_whole_pictures_are_taken(name: str, tmp_path: Path) -> None:
    """Type and size are told for every kind of whole file, whatever its name says."""
    header = _inspect(tmp_path, WHOLE[name])
    assert header.type == samples.TYPES[name.split()[0].upper()]
    assert (header.width, header.height) == samples.opened(WHOLE[name]).size


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "TIFF", "AVIF"])
def test_size_is_upright(format: str, orientation: int, tmp_path: Path) -> None:
    """Width and height are those a person sees: EXIF orientation is applied."""
    data = samples.encoded(samples.photo(), format, exif=samples.exif(orientation).tobytes())
    header = _inspect(tmp_path, data)
    expected = samples.SIZE if orientation < 5 else samples.SIZE[::-1]
    assert (header.width, header.height) == expected


@pytest.mark.parametrize("share", [0.02, 0.3, 0.5, 0.9, 0.99, 1.0])
@pytest.mark.parametrize("name", [n for n in WHOLE if n not in ("jpeg motion photo",)])
def test_truncated_files_are_refused(name: str, share: float, tmp_path: Path) -> None:
    """A file cut anywhere, at its last byte too, is `bad_image`."""
    data = WHOLE[name]
    if name == "jpeg two pictures":  # the second one is not read, so not missed
        data = data[: data.index(b"\xff\xd9\xff\xd8") + 2]
    data = data.rstrip(b"\0") if name == "tiff pages" else data  # padded at the end
    with pytest.raises(errors.BadImage):
        _inspect(tmp_path, data[: min(int(len(data) * share), len(data) - 1)])


@pytest.mark.parametrize("share", [0.1, 0.4, 0.8])
@pytest.mark.parametrize(
    "name", ["png", "jpeg", "jpeg progressive", "jpeg restarts", "webp", "webp lossless", "avif"]
)
def test_zero_tail_is_refused(name: str, share: float, tmp_path: Path) -> None:
    """A file of its final size whose end is still zeros is being written: `bad_image`."""
    format = name.split()[0].upper()
    options: dict[str, dict[str, Any]]
    options = {"progressive": {"progressive": True}, "lossless": {"lossless": True}}
    options["restarts"] = {"restart_marker_blocks": 2}
    picture = samples.noise((96, 64))
    data = samples.encoded(picture, format, **options.get(name.split()[-1], {}))
    keep = int(len(data) * share)
    with pytest.raises(errors.BadImage):
        _inspect(tmp_path, data[:keep] + bytes(len(data) - keep))


def _bmp(**fields: int) -> bytes:
    data = bytearray(WHOLE["bmp"])
    for name, value in fields.items():
        struct.pack_into("<I", data, {"size": 2, "header": 14, "width": 18}[name], value)
    return bytes(data)


BAD = {
    "empty": (b"", errors.BadImage),
    "one byte": (b"\x89", errors.BadImage),
    "text": (b"this is not a picture at all", errors.UnsupportedFormat),
    "zeros": (bytes(4096), errors.UnsupportedFormat),
    "svg": (b'<svg xmlns="http://www.w3.org/2000/svg"/>', errors.UnsupportedFormat),
    "svg with prolog": (b'\xef\xbb\xbf<?xml version="1.0"?><svg/>', errors.UnsupportedFormat),
    "eps": (b"%!PS-Adobe-3.0 EPSF-3.0\n", errors.UnsupportedFormat),
    "psd": (b"8BPS\0\1" + bytes(40), errors.UnsupportedFormat),
    "pdf": (b"%PDF-1.7\n%something", errors.UnsupportedFormat),
    "gif": (samples.gif(), errors.UnsupportedFormat),
    "jpeg 2000": (samples.encoded(samples.photo(), "JPEG2000"), errors.UnsupportedFormat),
    "ico": (samples.encoded(samples.photo((64, 64)), "ICO"), errors.UnsupportedFormat),
    "film": (
        b"\0\0\0\x14ftypisom\0\0\0\0isom" + b"\0\0\0\x0cmdatfilm",
        errors.UnsupportedFormat,
    ),
    "wave": (b"RIFF\x24\0\0\0WAVEfmt " + bytes(30), errors.UnsupportedFormat),
    "jpeg of 12 bits": (
        JPEG.replace(b"\xff\xc0\0\x11\x08", b"\xff\xc0\0\x11\x0c"),
        errors.UnsupportedFormat,
    ),
    "1x1": (samples.encoded(samples.photo((1, 1)), "PNG"), errors.BadImage),
    "15 pixels high": (samples.encoded(samples.photo((64, 15)), "JPEG"), errors.BadImage),
    "30000 wide": (samples.encoded(samples.photo((30_000, 16)), "PNG"), errors.ImageTooLarge),
    "no width": (PNG[:16] + bytes(4) + PNG[20:], errors.BadImage),
    "no pixels": (samples.png(64, 64, 8, 2, b""), errors.BadImage),
    "impossible depth": (PNG[:24] + b"\7" + PNG[25:], errors.BadImage),
    "jpeg without frame": (b"\xff\xd8\xff\xda\0\2data\xff\xd9" + bytes(9), errors.BadImage),
    "jpeg without scan": (JPEG[: JPEG.index(b"\xff\xda")] + b"\xff\xd9", errors.BadImage),
    "webp of nothing": (b"RIFF\x04\0\0\0WEBP", errors.BadImage),
    "webp without pixels": (
        b"RIFF\x0e\0\0\0WEBPXMP \x02\0\0\0ab",
        errors.BadImage,
    ),
    "tiff pointing nowhere": (b"II*\0\xff\xff\xff\x7f" + bytes(20), errors.BadImage),
    "tiff without strips": (
        samples.tiff_of_many_tags(blob=64, tags=3),
        errors.BadImage,
    ),
    "bmp longer than it is": (_bmp(size=1 << 20), errors.BadImage),
    "bmp of a strange header": (_bmp(header=99), errors.BadImage),
    "bmp wider than its rows": (_bmp(width=4000), errors.BadImage),
    "avif without size": (AVIF.replace(b"ispe", b"free"), errors.BadImage),
    "text bomb": (
        samples.png(
            *(64, 64, 8, 0, bytes(65 * 64)),
            samples.chunk(b"iTXt", b"a\0\1\0\0\0" + zlib.compress(bytes(50 << 20), 9)),
        ),
        errors.BadImage,
    ),
    "profile bomb": (
        samples.png(
            *(64, 64, 8, 0, bytes(65 * 64)),
            samples.chunk(b"iCCP", b"a\0\0" + zlib.compress(bytes(50 << 20), 9)),
        ),
        errors.BadImage,
    ),
    "many text chunks": (
        samples.png(
            *(64, 64, 8, 0, bytes(65 * 64)),
            samples.chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(1 << 20), 9)) * 5000,
        ),
        errors.BadImage,
    ),
    "many empty chunks": (
        samples.png(64, 64, 8, 0, bytes(65 * 64), samples.chunk(b"teSt", b"") * 100_000),
        errors.BadImage,
    ),
    "many empty segments": (JPEG[:2] + b"\xff\xfe\0\2" * 100_000 + JPEG[2:], errors.BadImage),
    "many large segments": (
        JPEG[:2] + (b"\xff\xe2\xff\xff" + bytes(65_533)) * 500 + JPEG[2:],
        errors.BadImage,
    ),
    "exif bomb": (
        samples.png(
            *(64, 64, 8, 0, bytes(65 * 64)),
            samples.chunk(b"eXIf", samples.tiff_of_many_tags(blob=1 << 20, tags=2000)),
        ),
        errors.BadImage,
    ),
    "tiff bomb": (samples.tiff_of_many_tags(blob=1 << 20, tags=2000), errors.BadImage),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_files_are_refused(name: str, tmp_path: Path) -> None:
    """Each bad file has its code, and a text without path or exception."""
    data, expected = BAD[name]
    with pytest.raises(expected) as caught:
        _inspect(tmp_path, data)
    assert type(caught.value) is expected
    assert str(tmp_path) not in caught.value.message
    assert "Error" not in caught.value.message


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        (Limits(max_side=119), errors.ImageTooLarge),
        (Limits(max_pixels=9599), errors.ImageTooLarge),
        (Limits(min_side=81), errors.BadImage),
        (Limits(max_side=120, max_pixels=9600, min_side=80), None),
    ],
)
def test_limits_are_inclusive(
    limits: Limits, expected: type[errors.VellumError] | None, tmp_path: Path
) -> None:
    """A picture exactly at a limit is taken, one beyond is refused."""
    if expected is None:
        assert _inspect(tmp_path, PNG, limits).width == 120
    else:
        with pytest.raises(expected):
            _inspect(tmp_path, PNG, limits)


@pytest.mark.parametrize("length", [*range(65_530, 65_542), 131_072])
def test_end_of_jpeg_is_found_between_pieces(length: int, tmp_path: Path) -> None:
    """EOI counts also where it lies across two of the pieces that are read."""
    scan = JPEG.index(b"\xff\xda")
    start = scan + 2 + int.from_bytes(JPEG[scan + 2 : scan + 4], "big")
    data = JPEG[:start] + b"\x11" * length
    assert _inspect(tmp_path, data + b"\xff\xd9").type == "image/jpeg"
    with pytest.raises(errors.BadImage):
        _inspect(tmp_path, data + b"\xff\xd0")


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP"])
def test_junk_exif_is_ignored(format: str, tmp_path: Path) -> None:
    """EXIF that is no EXIF leaves the picture as it is stored."""
    for junk in (b"Exif\0\0" + b"\xff" * 60, b"Exif\0\0II*\0\xff\xff\xff\x7f", b"Exif\0\0"):
        data = samples.encoded(samples.photo(), format, exif=junk)
        assert _inspect(tmp_path, data).width == samples.SIZE[0]


def test_heif_needs_its_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """HEIF is `unsupported_format` where no decoder for it is installed."""
    heif = AVIF.replace(b"avif", b"heic").replace(b"avis", b"heic")
    heif = heif.replace(b"mif1avif", b"mif1heic")
    assert _inspect(tmp_path, heif).type == "image/heif"
    monkeypatch.setattr(images.header, "heif_readable", lambda: False)
    with pytest.raises(errors.UnsupportedFormat, match="HEIF"):
        _inspect(tmp_path, heif)


@pytest.mark.parametrize("size", [(64, 48), (333, 221), (128, 128)])
@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_heif_is_as_large_as_its_decoder_says(
    tmp_path: Path, size: tuple[int, int], orientation: int
) -> None:
    """What encoders add to fill whole blocks does not count, nor how the camera was held."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = tmp_path / "a.heic"
    pillow_heif.from_pillow(Image.new("RGB", size, "red")).save(file, exif=exif.tobytes())
    upright = size[::-1] if orientation >= 5 else size
    found = images.inspect(file, Limits())
    assert (found.width, found.height) == images.load(file).image.size == upright


_GROWTH = """
import re, sys
from pathlib import Path
from vellumd import errors, images
from vellumd.settings import Limits
def peak():  # in KiB; getrusage would tell the parent's peak, which exec inherits
    return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
before = peak()
for path in sorted(Path(sys.argv[1]).iterdir()):
    try:
        images.load(path) if sys.argv[2] == "load" else images.inspect(path, Limits())
    except errors.VellumError as error:
        print(error.code, end=" ")
    else:
        print("taken", end=" ")
print(peak() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize(("call", "most_kib"), [("inspect", 64 << 10), ("load", 256 << 10)])
def test_refusing_costs_little_memory(call: str, most_kib: int, tmp_path: Path) -> None:
    """All bad files and the 13,300² bomb grow a process by far less than 256 MiB."""
    for number, (data, _) in enumerate(BAD.values()):
        (tmp_path / f"{number:03}.png").write_bytes(data)
    bomb = samples.bomb(13_300, 13_300)
    assert len(bomb) < 1 << 20
    (tmp_path / "bomb.png").write_bytes(bomb)
    command = [sys.executable, "-c", _GROWTH, str(tmp_path), call]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    *codes, growth = done.stdout.split()
    assert len(codes) == len(BAD) + 1
    assert "taken" not in codes
    assert codes[-1] == "image_too_large"
    assert int(growth) <= most_kib


@pytest.mark.parametrize("format", ["PNG", "JPEG"])
def test_inspect_is_fast(format: str, tmp_path: Path) -> None:
    """At least 2,000 pictures of 100 KB a second: intake does this for each upload."""
    size = (220, 160) if format == "PNG" else (360, 290)
    data = samples.encoded(samples.noise(size), format, quality=92)
    assert len(data) > 100_000
    path = tmp_path / "picture"
    path.write_bytes(data)
    best = 0.0
    for _ in range(5):
        start, calls = time.thread_time(), 200
        for _ in range(calls):
            images.inspect(path, LIMITS)
        best = max(best, calls / (time.thread_time() - start))
    assert best >= 2000


def _mutated(data: bytes, chance: random.Random) -> bytes:
    """`data` with a few bytes changed, a piece removed, repeated, zeroed or moved."""
    changed = bytearray(data)
    for _ in range(chance.randint(1, 6)):
        at = chance.randrange(min(len(changed), chance.choice((64, 512, len(changed)))))
        length = chance.choice((1, 2, 4, 64))
        match chance.randrange(5):
            case 0:
                changed[at] = chance.choice((0, 1, 0x7F, 0x80, 0xFF, chance.randrange(256)))
            case 1:
                del changed[at : at + length]
            case 2:
                changed[at:at] = changed[at : at + length]
            case 3:
                changed[at : at + length] = bytes(length)
            case 4:
                changed[at : at + 4] = chance.choice((b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff"))
        changed = changed or bytearray(1)
    return bytes(changed)


def _fuzzed() -> list[bytes]:
    """Small files of every format, with EXIF, as seeds."""
    picture = samples.photo((32, 24))
    block = samples.exif(6).tobytes()
    formats = ["PNG", "JPEG", "WEBP", "TIFF", "AVIF"]
    small = [samples.encoded(picture, format, exif=block) for format in formats]
    return [*small, samples.encoded(picture, "BMP"), samples.encoded(picture, "PNG")]


def test_mutated_files_raise_nothing_else(tmp_path: Path) -> None:
    """10,000 damaged files are taken or refused with a code; nothing else gets out."""
    seed = random.randrange(1 << 32)
    print("seed", seed)
    chance, seeds = random.Random(seed), _fuzzed()
    outcomes = {"taken": 0, "refused": 0}
    for _ in range(10_000):
        try:
            _inspect(tmp_path, _mutated(chance.choice(seeds), chance))
            outcomes["taken"] += 1
        except errors.VellumError:
            outcomes["refused"] += 1
    assert min(outcomes.values()) > 500


@pytest.mark.filterwarnings("ignore")
def test_mutated_files_decode_or_are_refused(tmp_path: Path) -> None:
    """600 damaged files load as a picture of the told size, or are refused with a code."""
    seed = random.randrange(1 << 32)
    print("seed", seed)
    chance, seeds = random.Random(seed), _fuzzed()
    path = tmp_path / "picture"
    for _ in range(600):
        path.unlink(missing_ok=True)
        path.write_bytes(_mutated(chance.choice(seeds), chance))
        try:
            picture = images.load(path)
        except errors.VellumError:
            continue
        assert picture.image.mode == "RGB"
        assert picture.image.size == picture.size
