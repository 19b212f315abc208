"""Results as files: format, alpha, what is kept, what is told, and smaller copies."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any, Literal

import pytest
from PIL import Image, ImageChops, ImageStat

from tests.images import samples
from vellumd import errors, images
from vellumd.images.metadata import iptc_segment
from vellumd.models import ResolvedOutput

FORMATS: tuple[Literal["png", "jpeg", "webp"], ...] = ("png", "jpeg", "webp")
KEEP = ("exif", "xmp", "iptc", "icc")
JOB = "01890a5d-ac96-774b-bcce-b302099a8057"
INFO: dict[str, Any] = {
    "job": JOB,
    "prompt": "make the sky red, please\nand keep the tree: ünï",
    "negative_prompt": " ",
    "steps": 8,
    "true_cfg_scale": 3.0,
    "seed": 0,
    "model": "demo",
    "loras": [{"name": "lightning-8", "scale": 1.0}],
}
IPTC = b"\x1c\x02\x19\x00\x05birds"
XMP = (
    b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6" '
    b"exif:GPSLatitude='48,12N' dc:format=\"image/jpeg\"><exif:GPSLongitude>16,22E"
    b"</exif:GPSLongitude><xmp:Thumbnails><rdf:Alt><rdf:li>base64</rdf:li></rdf:Alt>"
    b"</xmp:Thumbnails><dc:title>Tree</dc:title></rdf:Description></x:xmpmeta>"
)


def _load(tmp_path: Path, data: bytes) -> images.Picture:
    path = tmp_path / "source"
    path.write_bytes(data)
    return images.load(path)


def _source(tmp_path: Path, format: str = "JPEG") -> images.Picture:
    """A turned picture with EXIF, GPS, XMP, IPTC and a profile."""
    block = samples.exif(6)
    options: dict[str, Any] = {"icc_profile": samples.profile(swapped=True)}
    if format == "TIFF":
        block[700], block[33723] = XMP, IPTC
    elif format != "PNG":
        options["xmp"] = XMP
    if format == "JPEG":
        options["extra"] = iptc_segment(IPTC)
    return _load(
        tmp_path, samples.encoded(samples.photo(), format, exif=block.tobytes(), **options)
    )


def _encode(
    image: Image.Image, source: images.Picture | None = None, **output: Any
) -> tuple[bytes, str]:
    source = source or images.Picture(image.convert("RGB"))
    return images.encode(image, ResolvedOutput.model_validate(output), source, INFO)


def _difference(one: Image.Image, other: Image.Image) -> float:
    return max(ImageStat.Stat(ImageChops.difference(one.convert("RGB"), other)).mean)


@pytest.mark.parametrize("format", FORMATS)
def test_formats(format: str) -> None:
    """Each format is what it says, looks like the picture, and is the same each time."""
    data, media_type = _encode(samples.photo(), format=format)
    assert media_type == f"image/{format}"
    assert samples.opened(data).format == format.upper()
    assert _difference(samples.opened(data), samples.photo()) < 3
    assert data == _encode(samples.photo(), format=format)[0]


@pytest.mark.parametrize(
    ("source", "result"),
    [
        ("image/png", "image/png"), ("image/jpeg", "image/jpeg"), ("image/webp", "image/webp"),
        ("image/tiff", "image/jpeg"), ("image/heif", "image/jpeg"), ("image/avif", "image/jpeg"),
        ("image/bmp", "image/jpeg"),
    ],
)  # fmt: skip
def test_same_format(source: str, result: str) -> None:
    """`same` keeps PNG, JPEG and WebP; all others become JPEG."""
    picture = images.Picture(samples.photo(), type=source)
    assert _encode(samples.photo(), picture, format="same")[1] == result


@pytest.mark.parametrize("format", ["jpeg", "webp"])
def test_quality_counts(format: str) -> None:
    """Lower quality means fewer bytes."""
    sizes = [len(_encode(samples.noise((64, 64)), format=format, quality=q)[0]) for q in (20, 95)]
    assert sizes[0] < sizes[1]


@pytest.mark.parametrize("format", FORMATS)
def test_alpha_is_reapplied(format: str) -> None:
    """`alpha = reapply` brings image 1's transparency back; JPEG gets it on white."""
    alpha = Image.new("L", (60, 40), 255)
    alpha.paste(0, (0, 0, 30, 40))
    source = images.Picture(samples.photo((60, 40)), alpha)
    red = Image.new("RGB", (120, 80), "red")
    result = samples.opened(_encode(red, source, format=format, alpha="reapply")[0])
    pixel = result.convert("RGBA").getpixel((10, 40))
    assert isinstance(pixel, tuple)
    assert min(pixel[:3]) > 250 if format == "jpeg" else pixel[3] == 0
    flat = samples.opened(_encode(red, source, format=format)[0])
    assert "A" not in flat.getbands()


@pytest.mark.parametrize("format", FORMATS)
def test_kept_metadata(format: str, tmp_path: Path) -> None:
    """EXIF and XMP stay without orientation, GPS and thumbnail; profile and IPTC stay."""
    source = _source(tmp_path)
    data, _ = _encode(source.image, source, format=format, keep=KEEP, embed="none")
    result = samples.opened(data)
    block = result.getexif()
    assert block[0x010F] == "Maker"
    assert 0x0112 not in block
    assert block.get_ifd(0x8825) == {}
    details = block.get_ifd(0x8769)
    assert float(details[0x829A]) == 0.5
    assert 0x927C not in details
    xmp = result.info["xmp"]
    assert b"<dc:title>Tree</dc:title>" in xmp
    assert b'dc:format="image/jpeg"' in xmp
    for private in (b"GPS", b"Orientation", b"Thumbnails", b"base64"):
        assert private not in xmp
    assert result.info["icc_profile"] == samples.profile(swapped=True)
    if format == "jpeg":
        assert result.info["photoshop"][0x0404] == IPTC
    if format == "png":
        assert IPTC.hex() in result.info["Raw profile type iptc"]


@pytest.mark.parametrize("format", FORMATS)
def test_kept_profile_shows_the_same_colours(format: str, tmp_path: Path) -> None:
    """With its profile kept, a result is stored in that profile's colours, looking equal."""
    source = _source(tmp_path)
    data, _ = _encode(source.image, source, format=format, keep=("icc",))
    assert _difference(_load(tmp_path, data).image, source.image) < 3
    assert _difference(samples.opened(data), source.image) > 20


@pytest.mark.parametrize("format", FORMATS)
def test_nothing_is_kept_unasked(format: str, tmp_path: Path) -> None:
    """Without `keep` and `embed` a file carries pixels only."""
    source = _source(tmp_path)
    result = samples.opened(_encode(source.image, source, format=format, embed="none")[0])
    assert not set(result.info) & {"exif", "xmp", "icc_profile", "photoshop", "vellumd"}


@pytest.mark.parametrize("format", ["TIFF", "WEBP", "AVIF", "PNG"])
def test_other_sources_keep_their_metadata(format: str, tmp_path: Path) -> None:
    """EXIF, XMP and profile are found in every format that carries them."""
    source = _source(tmp_path, format)
    result = samples.opened(_encode(source.image, source, format="jpeg", keep=KEEP)[0])
    block = result.getexif()
    assert block[0x010F] == "Maker"
    assert not set(block) & {0x0112, 0x0111, 0x0100, 0x8825}
    assert block.get_ifd(0x8769)[0x829A] == 0.5
    assert "icc_profile" in result.info
    assert format == "PNG" or b"Tree" in result.info["xmp"]
    assert format != "TIFF" or result.info["photoshop"][0x0404] == IPTC


def _comment(data: bytes) -> str:
    raw = samples.opened(data).getexif().get_ifd(0x8769)[0x9286]
    assert raw.startswith(b"UNICODE\0")
    return str(raw[8:].decode("utf-16-be"))


def test_full_embedding_in_png() -> None:
    """PNG carries the text form that galleries read, and all facts as JSON."""
    text = samples.opened(_encode(samples.photo(), format="png", embed="full")[0]).info
    lines = text["parameters"].split("\n")
    assert "\n".join(lines[:2]) == INFO["prompt"]
    assert lines[2].startswith("Steps: 8, CFG scale: 3.0, Seed: 0, Model: demo, ")
    assert lines[2].endswith("Size: 120x80")
    assert json.loads(text["vellumd"]) == {**INFO, "width": 120, "height": 80}


@pytest.mark.parametrize("format", ["jpeg", "webp"])
def test_full_embedding_in_exif(format: str) -> None:
    """JPEG and WebP carry both in UserComment, the JSON as a quoted last value."""
    comment = _comment(_encode(samples.photo(), format=format, embed="full")[0])
    text, _, quoted = comment.partition(", vellumd: ")
    assert text.startswith(INFO["prompt"])
    told = json.loads(json.loads(quoted))
    assert told["job"] == JOB
    assert told["loras"] == INFO["loras"]


@pytest.mark.parametrize("format", FORMATS)
def test_id_embedding_tells_no_prompt(format: str, tmp_path: Path) -> None:
    """`embed = id` tells the job's id and nothing else, also with EXIF kept."""
    source = _source(tmp_path)
    data, _ = _encode(source.image, source, format=format, embed="id", keep=("exif",))
    text = samples.opened(data).info["vellumd"] if format == "png" else _comment(data)
    assert json.loads(text) == {"job": JOB}
    assert b"sky" not in data
    assert "sky".encode("utf-16-be") not in data
    assert samples.opened(data).getexif()[0x010F] == "Maker"


def test_long_prompt_falls_back_to_the_id(tmp_path: Path) -> None:
    """A prompt that no JPEG segment holds is left out; the job's id stays."""
    info = {**INFO, "prompt": "word " * 8000}
    source = _source(tmp_path)
    output = ResolvedOutput(format="jpeg", keep=("exif",))
    data, _ = images.encode(source.image, output, source, info)
    assert json.loads(_comment(data)) == {"job": JOB}
    assert samples.opened(data).getexif()[0x010F] == "Maker"


def test_too_wide_for_webp() -> None:
    """WebP ends at 16383 pixels a side: `result_too_large`."""
    with pytest.raises(errors.ResultTooLarge):
        _encode(Image.new("RGB", (16_384, 16)), format="webp")


def _stored(tmp_path: Path, image: Image.Image, format: str = "png") -> Path:
    path = tmp_path / "result"
    path.write_bytes(_encode(image, format=format)[0])
    return path


@pytest.mark.parametrize("wanted", FORMATS)
@pytest.mark.parametrize("stored", FORMATS)
def test_derive_converts(
    stored: str, wanted: Literal["png", "jpeg", "webp"], tmp_path: Path
) -> None:
    """Every stored format becomes every wanted one; an equal one is the file itself."""
    path = _stored(tmp_path, samples.photo(), stored)
    data, media_type = images.derive(path, wanted)
    assert media_type == f"image/{wanted}"
    assert samples.opened(data).format == wanted.upper()
    assert _difference(samples.opened(data), samples.photo()) < 4
    assert data == images.derive(path, wanted)[0]
    assert (data == path.read_bytes()) == (stored == wanted)


@pytest.mark.parametrize("wanted", FORMATS)
@pytest.mark.parametrize("most", [100_000, 40_000, 20_000])
def test_derive_fits(wanted: Literal["png", "jpeg", "webp"], most: int, tmp_path: Path) -> None:
    """A copy fits into the wanted bytes, keeps its ratio and is the same each time."""
    path = _stored(tmp_path, samples.noise((300, 200)))
    data, _ = images.derive(path, wanted, max_bytes=most)
    assert len(data) <= most
    copy = samples.opened(data)
    assert abs(copy.width / copy.height - 1.5) < 0.05
    assert min(copy.size) >= 64
    assert data == images.derive(path, wanted, max_bytes=most)[0]


def test_derive_lowers_quality_before_size(tmp_path: Path) -> None:
    """While a lower quality is enough, the pixels stay."""
    path = _stored(tmp_path, samples.noise((300, 200)))
    best = len(images.derive(path, "jpeg")[0])
    data, _ = images.derive(path, "jpeg", max_bytes=best // 2)
    assert samples.opened(data).size == (300, 200)


def test_derive_without_losing_pixels(tmp_path: Path) -> None:
    """Where fewer pixels would be needed but are not wanted: `result_too_large`."""
    path = _stored(tmp_path, samples.noise((300, 200)))
    assert samples.opened(images.derive(path, "jpeg", max_bytes=20_000)[0]).size < (300, 200)
    with pytest.raises(errors.ResultTooLarge):
        images.derive(path, "jpeg", max_bytes=20_000, resize=False)


def test_derive_quality_is_used(tmp_path: Path) -> None:
    """A wanted quality re-encodes, also within one format."""
    path = _stored(tmp_path, samples.noise((64, 64)), "jpeg")
    assert len(images.derive(path, "jpeg", quality=30)[0]) < path.stat().st_size


@pytest.mark.parametrize("wanted", FORMATS)
def test_derive_gives_up(wanted: Literal["png", "jpeg", "webp"], tmp_path: Path) -> None:
    """Where even the smallest copy is too large: `result_too_large`."""
    path = _stored(tmp_path, samples.noise((300, 200)))
    with pytest.raises(errors.ResultTooLarge):
        images.derive(path, wanted, max_bytes=300)


def test_derive_flattens_for_jpeg(tmp_path: Path) -> None:
    """A transparent result as JPEG lies on white; as WebP it stays transparent."""
    path = tmp_path / "result"
    path.write_bytes(samples.encoded(Image.new("RGBA", (64, 64), (0, 0, 0, 0)), "PNG"))
    pixel = samples.opened(images.derive(path, "jpeg")[0]).getpixel((5, 5))
    assert pixel == (255, 255, 255)
    assert samples.opened(images.derive(path, "webp")[0]).mode == "RGBA"


def test_derive_keeps_profile_and_comment(tmp_path: Path) -> None:
    """A copy shows the same colours and tells the same job."""
    source = _source(tmp_path)
    output = ResolvedOutput(format="webp", keep=("icc",), embed="id")
    path = tmp_path / "result"
    path.write_bytes(images.encode(source.image, output, source, INFO)[0])
    data, _ = images.derive(path, "jpeg")
    assert json.loads(_comment(data)) == {"job": JOB}
    assert io.BytesIO(samples.opened(data).info["icc_profile"]).read() == source.kept.icc
