"""Decoding: every kind of file becomes upright RGB in sRGB."""

from __future__ import annotations

import io
import struct
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageChops, ImageOps, ImageStat

from tests.images import samples
from vellumd import errors, images
from vellumd.images.picture import FORMATS
from vellumd.settings import Limits


def _load(tmp_path: Path, data: bytes, **options: Any) -> images.Picture:
    path = tmp_path / "picture"
    path.write_bytes(data)
    return images.load(path, **options)


def _difference(one: Image.Image, other: Image.Image) -> float:
    """Mean absolute difference of two pictures of one size."""
    assert one.size == other.size
    return max(ImageStat.Stat(ImageChops.difference(one, other)).mean)


@pytest.mark.parametrize("name", samples.whole())
def test_every_format_decodes_to_rgb(name: str, tmp_path: Path) -> None:
    """Pixels agree with Pillow's own view of the first frame."""
    data = samples.whole()[name]
    picture = _load(tmp_path, data)
    assert picture.image.mode == "RGB"
    assert picture.type == samples.TYPES[name.split()[0].upper()]
    assert picture.size == picture.image.size
    assert _difference(picture.image, samples.opened(data).convert("RGB")) < 1


def _gray16() -> bytes:
    values = [257 * (x % 256) for x in range(256)]
    return samples.png(256, 16, 16, 0, (b"\0" + struct.pack(">256H", *values)) * 16)


def _rgb16() -> bytes:
    row = b"\0" + struct.pack(">3H", 0xFFFF, 0x8080, 0x0101) * 32
    return samples.png(32, 32, 16, 2, row * 32)


@pytest.mark.parametrize("name", ["png", "tiff"])
def test_16_bit_gray_is_scaled(name: str, tmp_path: Path) -> None:
    """16-bit gray keeps its whole range; clipping would turn nearly all of it white."""
    data = _gray16()
    if name == "tiff":
        data = samples.encoded(samples.opened(data), "TIFF")
    picture = _load(tmp_path, data).image
    assert [picture.getpixel((x, 3)) for x in (0, 1, 128, 255)] == [
        (0, 0, 0), (1, 1, 1), (128, 128, 128), (255, 255, 255),
    ]  # fmt: skip


def test_16_bit_colour_is_scaled(tmp_path: Path) -> None:
    """16-bit RGB becomes 8-bit RGB of the same colour."""
    assert _load(tmp_path, _rgb16()).image.getpixel((5, 5)) == (255, 128, 1)


def test_deep_tiff_is_refused(tmp_path: Path) -> None:
    """32-bit samples have no defined white: `unsupported_format`, at intake already."""
    for mode in ("I", "F"):
        with pytest.raises(errors.UnsupportedFormat):
            _load(tmp_path, samples.encoded(Image.new(mode, (64, 64)), "TIFF"))


def _transparent(mode: str) -> bytes:
    """Left half transparent, right half opaque red or gray."""
    gray = mode in ("LA", "L", "1")
    picture = Image.new("L" if gray else "RGB", (64, 32), 255 if gray else (255, 0, 0))
    if mode in ("LA", "RGBA"):
        alpha = Image.new("L", (64, 32))
        alpha.paste(255, (32, 0, 64, 32))
        picture.putalpha(alpha)
        return samples.encoded(picture, "PNG")
    picture.paste(0, (0, 0, 32, 32))
    if mode == "P":
        picture = picture.quantize(2)
        return samples.encoded(picture, "PNG", transparency=picture.getpixel((1, 1)))
    key = (0, 0, 0) if mode == "RGB" else 0
    return samples.encoded(picture.convert(mode), "PNG", transparency=key)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "RGB", "L", "1"])
def test_alpha_is_split_off(mode: str, tmp_path: Path) -> None:
    """Each way of being transparent gives RGB and an alpha; flat, it lies on white."""
    picture = _load(tmp_path, _transparent(mode))
    assert picture.image.mode == "RGB"
    assert picture.alpha is not None
    assert [picture.alpha.getpixel((x, 5)) for x in (5, 40)] == [0, 255]
    assert picture.flat.getpixel((5, 5)) == (255, 255, 255)
    assert picture.flat.getpixel((40, 5)) == picture.image.getpixel((40, 5))


def test_opaque_alpha_is_none(tmp_path: Path) -> None:
    """An alpha that hides nothing is no alpha."""
    assert _load(tmp_path, samples.encoded(samples.photo().convert("RGBA"), "PNG")).alpha is None


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "TIFF", "AVIF"])
def test_orientation_is_applied(format: str, orientation: int, tmp_path: Path) -> None:
    """The picture stands as viewers show it, in all eight orientations."""
    block = samples.exif(orientation).tobytes()
    picture = _load(tmp_path, samples.encoded(samples.photo(), format, exif=block))
    upright = Image.Exif()
    upright[0x0112] = orientation
    tagged = samples.photo()
    tagged.info["exif"] = upright.tobytes()
    expected = ImageOps.exif_transpose(tagged)
    assert _difference(picture.image, expected) < 6
    assert picture.size == expected.size


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "TIFF", "AVIF"])
def test_profile_is_converted(format: str, tmp_path: Path) -> None:
    """Colours are read through the file's profile: this one swaps red and blue."""
    red = Image.new("RGB", (64, 64), (255, 0, 0))
    data = samples.encoded(red, format, icc_profile=samples.profile(swapped=True))
    colour = _load(tmp_path, data).image.getpixel((9, 9))
    assert isinstance(colour, tuple)
    assert colour[2] > 240
    assert colour[0] < 20


def test_srgb_profile_changes_nothing(tmp_path: Path) -> None:
    """Pixels of an sRGB file stay exactly what they are."""
    data = samples.encoded(samples.photo(), "PNG", icc_profile=samples.profile())
    assert _load(tmp_path, data).image.tobytes() == samples.photo().tobytes()


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_junk_profile_is_ignored(mode: str, tmp_path: Path) -> None:
    """Neither junk nor a profile of other colours than the pixels' does any harm."""
    picture = samples.photo().convert(mode)
    for junk in (b"junk", bytes(200), samples.profile(swapped=True)[:300]):
        data = samples.encoded(picture, "JPEG", icc_profile=junk, quality=95)
        loaded = _load(tmp_path, data)
        assert _difference(loaded.image, samples.opened(data).convert("RGB")) == 0
        assert loaded.kept.icc is None
    if mode != "RGB":
        data = samples.encoded(picture, "JPEG", icc_profile=samples.profile(swapped=True))
        assert _difference(_load(tmp_path, data).image, samples.opened(data).convert("RGB")) == 0


def test_first_frame_counts(tmp_path: Path) -> None:
    """Of an animation the first frame is taken."""
    frames = {"save_all": True, "append_images": [Image.new("RGB", (64, 64), "blue")]}
    for format in ("PNG", "WEBP", "TIFF"):
        data = samples.encoded(Image.new("RGB", (64, 64), "red"), format, **frames)
        pixel = _load(tmp_path, data).image.getpixel((3, 3))
        assert isinstance(pixel, tuple)
        assert pixel[0] > 240


def test_missing_rows_are_refused(tmp_path: Path) -> None:
    """A file that is whole outside but lacks coded rows is `bad_image`."""
    data = samples.encoded(samples.noise((64, 64)), "PNG")
    start = data.index(b"IDAT") + 4
    half = data[start : start + 6000]
    head = data[: start - 8]
    with pytest.raises(errors.BadImage):
        _load(tmp_path, head + samples.chunk(b"IDAT", half) + samples.chunk(b"IEND", b""))


@pytest.mark.filterwarnings("ignore")
def test_contradicting_sizes_are_refused(tmp_path: Path) -> None:
    """A file whose parts tell different sizes is refused before it is decoded."""
    picture = samples.encoded(samples.photo((4000, 3000)), "WEBP")[12:]
    canvas = b"VP8X\x0a\0\0\0\0\0\0\0" + bytes((63, 0, 0, 63, 0, 0))
    data = b"WEBP" + canvas + picture
    with pytest.raises(errors.BadImage):
        _load(tmp_path, b"RIFF" + struct.pack("<I", len(data)) + data)


def test_jpeg_can_be_decoded_smaller(tmp_path: Path) -> None:
    """With a target the decoder reduces, never below it; the told size stays the file's."""
    data = samples.encoded(samples.photo((1600, 1200)), "JPEG", exif=samples.exif(6).tobytes())
    picture = _load(tmp_path, data, target=300)
    assert picture.image.size == (300, 400)
    assert picture.size == (1200, 1600)
    assert _load(tmp_path, data, target=5000).image.size == (1200, 1600)


def test_flatten_and_reapply(tmp_path: Path) -> None:
    """Alpha put back on a result of another size covers it as before."""
    alpha = Image.new("L", (64, 64))
    alpha.paste(255, (32, 0, 64, 64))
    red = Image.new("RGB", (128, 128), "red")
    result = images.reapply_alpha(red, alpha)
    assert result.mode == "RGBA"
    assert [result.getpixel((x, 60)) for x in (5, 120)] == [(255, 0, 0, 0), (255, 0, 0, 255)]
    flat = images.flatten(red, result.getchannel("A"))
    assert [flat.getpixel((x, 60)) for x in (5, 120)] == [(255, 255, 255), (255, 0, 0)]


def test_black_output_is_refused() -> None:
    """A black picture is `bad_output`; one lit pixel makes it a picture."""
    black = Image.new("RGB", (64, 64))
    for picture in (black, black.convert("RGBA"), black.convert("L")):
        with pytest.raises(errors.BadOutput):
            images.check_output(picture)
    black.putpixel((3, 3), (0, 0, 1))
    images.check_output(black)


RARE = {
    "PSD": b"8BPS\0\1" + bytes(6) + struct.pack(">HIIHH", 3, 32, 32, 8, 3) + bytes(64),
    "EPS": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 32 32\n%%EndComments\n",
    "FITS": b"SIMPLE  =                    T".ljust(80) + b"BITPIX  =  8".ljust(2800),
    "JPEG2000": b"\0\0\0\x0cjP  \r\n\x87\n\0\0\0\x14ftypjp2 " + bytes(64),
    "MCIDAS": bytes(7) + b"\4" + bytes(2048),
    "GIF": b"GIF89a\x20\0\x20\0\0\0\0;",
    "SVG": b'<svg xmlns="http://www.w3.org/2000/svg" width="32" height="32"/>',
}


@pytest.mark.parametrize("name", RARE)
def test_rare_formats_reach_no_decoder(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pillow knows dozens; a file meets none but ours, whatever it holds."""
    assert FORMATS == ("PNG", "JPEG", "WEBP", "TIFF", "AVIF", "BMP")
    Image.init()
    tried: list[str] = []

    def trap(format: str) -> tuple[Any, Any]:
        return Image.OPEN[format][0], lambda *_: tried.append(format)

    for format in set(Image.OPEN) - set(FORMATS):
        monkeypatch.setitem(Image.OPEN, format, trap(format))
    with pytest.raises((errors.UnsupportedFormat, errors.BadImage)):
        _load(tmp_path, RARE[name])
    (tmp_path / "known").write_bytes(samples.whole()["png"])
    header = images.inspect(tmp_path / "known", Limits())
    monkeypatch.setattr("vellumd.images.picture.inspect", lambda *_: header)
    with pytest.raises(errors.BadImage):  # also where the first look took it for ours
        _load(tmp_path, RARE[name])
    assert tried == []
    with pytest.raises(OSError, match="cannot identify"):
        Image.open(io.BytesIO(RARE[name]))
    assert tried
