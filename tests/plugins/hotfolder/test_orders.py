"""What lies in an inbox, and which edits it asks for."""

from __future__ import annotations

import csv
import io
import json
import os
import unicodedata
from pathlib import Path

import pillow_heif
import pytest
from PIL import Image, ImageCms, PngImagePlugin

from tests.plugins.hotfolder.conftest import OpenDrop, encoded
from vellumd.images import header, metadata


async def prompts(folder) -> dict[str, str]:
    """Prompt by name of the first picture."""
    return {job.request.images[0].name: job.request.prompt for job in await folder.jobs()}


async def test_a_picture_with_its_text(drop: OpenDrop) -> None:
    """The result has the original's name; the original and its text go to done."""
    async with drop() as folder:
        folder.put("a.png", encoded(1))
        folder.put("a.txt", "make it blue")
        await folder.out("a.png")
        await folder.until(lambda: folder.names("done") == {"a.png", "a.txt"}, "the originals")
        assert folder.names("inbox") == folder.names("failed") == set()
        assert await prompts(folder) == {"a.png": "make it blue"}


async def test_a_text_may_come_later(drop: OpenDrop) -> None:
    """Until then the picture waits, and STATUS.txt says for what."""
    async with drop() as folder:
        folder.put("a.png", encoded(1))
        await folder.until(lambda: "a.png: waiting for a prompt" in folder.status(), "STATUS")
        assert await folder.jobs() == []
        folder.put("a.txt", "make it blue")
        await folder.out("a.png")


async def test_a_preset_that_does_not_exist_is_told(drop: OpenDrop) -> None:
    """A slip of the pen is no picture that waits for a prompt."""
    async with drop() as folder:
        for name, text in (("a", '{"preset": "orignal"}'), ("b", '{"preset": 5}')):
            folder.put(f"{name}.json", text)
            folder.put(f"{name}.png", encoded(1))
        await folder.until(lambda: len(folder.names("failed")) == 6, "the failures")
        assert "'orignal'" in (folder.root / "failed/a.error.txt").read_text("utf-8")
        assert "preset: " in (folder.root / "failed/b.error.txt").read_text("utf-8")


async def test_a_preset_of_the_settings_that_does_not_exist_is_told_at_the_start(
    drop: OpenDrop, caplog: pytest.LogCaptureFixture
) -> None:
    """Before three hundred pictures are refused for it."""
    async with drop(preset="orignal"):
        assert "folder main: there is no preset 'orignal'" in caplog.text
    caplog.clear()
    async with drop(preset="original"):
        assert "there is no preset" not in caplog.text


async def test_when_it_will_be_ready(drop: OpenDrop) -> None:
    """STATUS.txt counts what is in work and says about when the last will be done."""
    async with drop(prompt="p", paper={"step_s": 0.03}) as folder:
        for tone in range(12):
            folder.put(f"{tone}.png", encoded(tone))
        await folder.until(lambda: "in work. Ready about " in folder.status(), "STATUS")


async def test_where_a_prompt_comes_from(drop: OpenDrop) -> None:
    """A picture's own text, else its folder's, else the inbox's, else the settings'."""
    async with drop(prompt="settings") as folder:
        folder.put("a.png", encoded(1))
        await folder.out("a.png")
        folder.put("prompt.txt", "inbox")
        folder.put("set/each.txt", "folder")
        folder.put("set/c.txt", "own")
        folder.put("set/e.json", json.dumps({"prompt": "json", "cfg": 2, "seed": 5}))
        for tone, name in enumerate(("b", "set/c", "set/d", "set/e", "other/f"), start=2):
            folder.put(f"{name}.png", encoded(tone))
        await folder.out(
            *(f"{name}.png" for name in ("a", "b", "set/c", "set/d", "set/e", "other/f"))
        )
        assert await prompts(folder) == {
            "a.png": "settings", "b.png": "inbox", "c.png": "own", "d.png": "folder",
            "e.png": "json", "f.png": "inbox",
        }  # fmt: skip
        by_name = {job.request.images[0].name: job for job in await folder.jobs()}
        assert (by_name["e.png"].request.seed, by_name["e.png"].request.true_cfg_scale) == (5, 2)
        assert by_name["d.png"].batch == "set"


async def test_a_folder_is_one_edit(drop: OpenDrop) -> None:
    """Pictures in natural order are one request; the result is called like the folder."""
    async with drop() as folder:
        for tone, name in enumerate(("p10.png", "p2.png", "p1.jpg")):
            folder.put(f"scene/{name}", encoded(tone, "JPEG" if name.endswith("jpg") else "PNG"))
        folder.put("scene/notes.mov", b"stays")
        folder.put("scene/prompt.txt", "put them together")
        await folder.out("scene.jpg")
        (job,) = await folder.jobs()
        assert [image.name for image in job.request.images] == ["p1.jpg", "p2.png", "p10.png"]
        assert folder.names("inbox") == {"scene/notes.mov"}
        await folder.until(lambda: len(folder.names("done")) == 4, "the originals")


async def test_more_pictures_than_one_edit_holds_are_edited_each(drop: OpenDrop) -> None:
    """Also the last ones, and those that come later: the text is each.txt from then on."""
    async with drop(limits={"queue": 6}) as folder:
        for tone in range(7):
            folder.put(f"many/{tone}.png", encoded(tone))
        folder.put("many/prompt.txt", "all of them")
        await folder.out(*(f"many/{tone}.png" for tone in range(7)))
        folder.put("many/late.png", encoded(9))
        await folder.out(*(f"many/{tone}.png" for tone in range(7)), "many/late.png")
        assert {len(job.request.images) for job in await folder.jobs()} == {1}
        assert folder.names("inbox") == {"many/each.txt"}


async def test_preset_files(drop: OpenDrop) -> None:
    """_preset.toml holds any field; with it a folder of two is two edits."""
    async with drop() as folder:
        folder.put("x/_preset.toml", "preset = 'fastest'\nprompt = 'snow'\nn = 2\n")
        folder.put("x/a.png", encoded(1))
        folder.put("x/b.png", encoded(2))
        await folder.out("x/a_1.png", "x/a_2.png", "x/b_1.png", "x/b_2.png")
        assert {job.request.preset for job in await folder.jobs()} == {"fastest"}


async def test_a_saved_preset_in_a_folder(drop: OpenDrop) -> None:
    """What was saved at another door holds prompt and all: the folder's pictures go."""
    async with drop() as folder:
        folder.put("x/_preset.toml", "preset = 'snow'\n")
        folder.daemon.jobs.presets.save("snow", {"prompt": "snow", "steps": 3})
        folder.put("x/a.png", encoded(1))
        await folder.out("x/a.png")
        (job,) = await folder.jobs()
        assert (job.request.prompt, job.request.steps) == ("snow", 3)


async def test_require_ready(drop: OpenDrop) -> None:
    """A sub-folder waits for _ready."""
    async with drop(require_ready=True, prompt="p") as folder:
        folder.put("x/a.png", encoded(1))
        folder.put("b.png", encoded(2))
        await folder.out("b.png")
        assert folder.names("inbox") == {"x/a.png"}
        folder.put("x/_ready", b"")
        await folder.out("b.png", "x/a.png")


async def test_encodings_of_texts(drop: OpenDrop) -> None:
    """What Windows' editors write is read as it was meant, also without a mark (utf-16-le)."""
    encodings = ("utf-16", "utf-16-le", "cp949", "utf-8-sig")
    async with drop() as folder:
        for encoding in encodings:
            folder.put(f"{encoding}.txt", "눈을 내려줘".encode(encoding))
            folder.put(f"{encoding}.png", encoded(1))
        await folder.out(*(f"{encoding}.png" for encoding in encodings))
        assert set((await prompts(folder)).values()) == {"눈을 내려줘"}


async def test_names(drop: OpenDrop) -> None:
    """Spaces, emoji, a newline, 255 bytes, NFD beside NFC: results bear the same names."""
    long = "k" * 251
    decomposed = unicodedata.normalize("NFD", "Käse")
    stems = ["two words", "😀", "line\nbreak", long, decomposed, "=cmd()"]
    async with drop() as folder:
        for tone, stem in enumerate(stems):
            folder.put(f"{stem}.png", encoded(tone))
            folder.put(f"{unicodedata.normalize('NFC', stem)}.txt", f"prompt {tone}")
        await folder.out(*(f"{stem}.png" for stem in stems))
        assert sorted((await prompts(folder)).values()) == [f"prompt {n}" for n in range(6)]
        report = folder.root / "REPORT.csv"
        await folder.until(report.exists, "the report")
        with report.open(encoding="utf-8-sig", newline="") as file:
            assert next(csv.reader(file))[:3] == ["time", "file", "status"]


async def test_a_long_name_that_fails(drop: OpenDrop) -> None:
    """NAME.error.txt is cut so that the disk takes it."""
    name = "k" * 251 + ".png"
    async with drop(prompt="fail") as folder:
        folder.put(name, encoded(1))
        await folder.until(lambda: name in folder.names("failed"), "the failure")
        (told,) = folder.names("failed") - {name}
        assert told.endswith("k.error.txt")


async def test_what_is_not_touched(drop: OpenDrop, tmp_path: Path) -> None:
    """Links, pipes, folders called x.png and names that are no text stay, named in STATUS.txt."""
    (tmp_path / "secret.png").write_bytes(encoded(1))
    async with drop(prompt="p") as folder:
        (folder.inbox / "link.png").symlink_to(tmp_path / "secret.png")
        os.mkfifo(folder.inbox / "pipe.png")
        (folder.inbox / "folder.png").mkdir()
        folder.put(os.fsdecode(b"\xff\xfe.png"), encoded(2))
        for litter in (".hidden.png", "a.png.part", "Thumbs.db", "~$a.png", "b.tmp"):
            folder.put(litter, encoded(3))
        folder.put("raw.cr3", b"raw")
        folder.put("good.png", encoded(4))
        await folder.out("good.png")
        status = folder.root / "STATUS.txt"

        def told() -> bool:
            text = status.read_text("utf-8-sig") if status.exists() else ""
            wanted = ("link.png", "pipe.png", "folder.png", "\\udcff\\udcfe.png", "1 other file")
            return all(word in text for word in wanted)

        await folder.until(told, "STATUS.txt")
        assert len(await folder.jobs()) == 1


async def test_texts_name_no_files(drop: OpenDrop) -> None:
    """A sidecar cannot reach for other files; it fails, saying so."""
    fields = ("images", "mask")
    async with drop() as folder:
        for field in fields:
            folder.put(f"{field}.json", json.dumps({"prompt": "p", field: "../../secret.png"}))
            folder.put(f"{field}.png", encoded(1))
        await folder.until(lambda: len(folder.names("failed")) == 6, "the failures")
        for field in fields:
            told = (folder.root / f"failed/{field}.error.txt").read_text("utf-8")
            assert f"{field}: the pictures are" in told
        assert await folder.jobs() == []


async def test_a_file_moved_back_is_a_new_job(drop: OpenDrop) -> None:
    """From failed/ with another text it runs; from done/ it runs again, under a new name."""
    async with drop() as folder:
        folder.put("a.png", encoded(1))
        folder.put("a.txt", "fail")
        failed = folder.root / "failed"
        await folder.until(lambda: (failed / "a.png").exists(), "the failure")
        assert "(code: internal, job " in (failed / "a.error.txt").read_text("utf-8")
        await folder.until(lambda: "1 failed" in folder.status(), "STATUS")
        folder.put("a.txt", "better")
        (failed / "a.png").rename(folder.inbox / "a.png")
        await folder.out("a.png")
        await folder.until(lambda: "a.png" in folder.names("done"), "the original")
        await folder.until(lambda: "failed" not in folder.status(), "STATUS")
        (folder.root / "done/a.txt").rename(folder.inbox / "a.txt")
        (folder.root / "done/a.png").rename(folder.inbox / "a.png")
        await folder.out("a.png", "a (2).png")


async def test_nothing_is_written_over(drop: OpenDrop) -> None:
    """A second picture of a name gets a number, here and in done."""
    async with drop(prompt="p") as folder:
        for tone in (1, 2):
            folder.put("a.png", encoded(tone))
            await folder.until(lambda tone=tone: len(folder.names("done")) == tone, "done")
        assert folder.names("outbox") == folder.names("done") == {"a.png", "a (2).png"}


async def test_duplicates_can_be_skipped(drop: OpenDrop) -> None:
    """The same bytes and prompt again go to done without a job."""
    async with drop(prompt="p", duplicates="skip") as folder:
        folder.put("a.png", encoded(1))
        await folder.out("a.png")
        folder.put("b.png", encoded(1))
        await folder.until(lambda: folder.names("done") == {"a.png", "b.png"}, "done")
        assert len(await folder.jobs()) == 1
        assert folder.names("outbox") == {"a.png"}


async def test_originals_can_be_deleted(drop: OpenDrop) -> None:
    """`done = delete`: the result stays, the original is gone."""
    async with drop(prompt="p", done="delete") as folder:
        folder.put("a.png", encoded(1))
        await folder.out("a.png")
        await folder.until(lambda: not list((folder.root / ".work").glob("*/*")), "the claim's end")
        assert folder.names("done") == folder.names("inbox") == set()


async def test_two_pictures_share_a_text(drop: OpenDrop) -> None:
    """a.jpg and a.png both get a.txt."""
    async with drop() as folder:
        folder.put("a.txt", "both")
        folder.put("a.png", encoded(1))
        folder.put("a.jpg", encoded(2, "JPEG"))
        await folder.out("a.png", "a.jpg")
        assert set((await prompts(folder)).values()) == {"both"}
        assert folder.names("inbox") == set()


async def test_formats(drop: OpenDrop) -> None:
    """Results are of the original's format; TIFF, AVIF and BMP have become JPEG."""
    formats = {"JPEG": "JPG", "PNG": "png", "WEBP": "webp", "TIFF": "tif", "BMP": "bmp",
               "AVIF": "avif"}  # fmt: skip
    becomes = {"TIFF": "jpg", "AVIF": "jpg", "BMP": "jpg"}
    async with drop(prompt="p") as folder:
        for format, ending in formats.items():
            folder.put(f"{format}.{ending}", encoded(1, format))
        await folder.out(*(f"{f}.{becomes.get(f, ending)}" for f, ending in formats.items()))


def photographed(format: str) -> bytes:
    """A picture as cameras and Lightroom leave it: all that may stay, and all that may not."""
    exif = Image.Exif()
    exif[0x010F], exif[0x0112] = "Maker", 6
    exif.get_ifd(0x8825)[1] = "N"
    exif.get_ifd(0x8769)[0x9003] = "2026:05:23 12:00:00"
    caption = b"\x1c\x02\x78\x00\x05Bride"
    text = PngImagePlugin.PngInfo()
    text.add_itxt("XML:com.adobe.xmp", XMP.decode())
    own = {
        "JPEG": {"xmp": XMP, "extra": metadata.iptc_segment(caption)},
        "PNG": {"pnginfo": text},
        "WEBP": {"xmp": XMP},
    }[format]
    file = io.BytesIO()
    Image.linear_gradient("L").convert("RGB").resize((64, 48)).save(
        file, format, exif=exif, icc_profile=PROFILE, **own
    )
    return file.getvalue()


PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
XMP = b"""<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF
xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><rdf:Description rdf:about=""
xmlns:xmp="http://ns.adobe.com/xap/1.0/" xmlns:exif="http://ns.adobe.com/exif/1.0/"
xmp:Rating="4" exif:GPSLatitude="48,8.2N"/></rdf:RDF></x:xmpmeta>"""


async def test_metadata_is_kept_and_no_prompt_delivered(drop: OpenDrop) -> None:
    """EXIF, XMP, IPTC and profile go along; GPS, orientation and the prompt do not."""
    async with drop(prompt="the secret wish") as folder:
        for format in ("jpeg", "png", "webp"):
            folder.put(f"a.{format}", photographed(format.upper()))
        await folder.out("a.jpeg", "a.png", "a.webp")
        for file in (folder.root / "outbox").iterdir():
            data = file.read_bytes()
            with Image.open(io.BytesIO(data)) as result:
                exif = result.getexif()
                assert exif[0x010F] == "Maker"
                assert exif.get_ifd(0x8769)[0x9003] == "2026:05:23 12:00:00"
                assert exif.get(0x0112, 1) == 1
                assert not exif.get_ifd(0x8825)
                assert result.info["icc_profile"] == PROFILE
                assert b'xmp:Rating="4"' in result.info["xmp"]
                assert b"GPS" not in result.info["xmp"]
                assert result.size == (48, 64)
            assert (b"Bride" in data) == (file.suffix == ".jpeg")
            assert b"secret wish" not in data


async def test_phones_pictures(drop: OpenDrop) -> None:
    """HEIC, with the extra, comes out as JPEG of the same name, with EXIF and profile."""
    image = Image.linear_gradient("L").convert("RGB").resize((64, 48))
    exif = Image.Exif()
    exif[0x010F] = "Phone"
    file = io.BytesIO()
    heif = pillow_heif.from_pillow(image)
    heif.save(file, exif=exif.tobytes(), icc_profile=PROFILE)
    async with drop(prompt="p") as folder:
        folder.put("IMG_0001.HEIC", file.getvalue())
        folder.put("IMG_0001.MOV", b"the film of a live photo")
        await folder.out("IMG_0001.jpg")
        with Image.open(folder.root / "outbox/IMG_0001.jpg") as result:
            assert result.format == "JPEG"
            assert result.size == (64, 48)
            assert result.getexif()[0x010F] == "Phone"
            assert result.info["icc_profile"] == PROFILE
        assert folder.names("inbox") == {"IMG_0001.MOV"}


async def test_phones_pictures_without_the_extra(
    drop: OpenDrop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They fail, and the text beside them says what is missing."""
    file = io.BytesIO()
    pillow_heif.from_pillow(Image.new("RGB", (64, 48))).save(file)
    monkeypatch.setattr(header, "heif_readable", lambda: False)
    async with drop(prompt="p", incomplete_s=0) as folder:
        folder.put("a.heic", file.getvalue())
        await folder.until(lambda: "a.error.txt" in folder.names("failed"), "the failure")
        told = (folder.root / "failed/a.error.txt").read_text("utf-8")
        assert "heif extra" in told
