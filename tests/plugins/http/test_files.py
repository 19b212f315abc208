"""The pages' own files: fresh, small, each known."""

from __future__ import annotations

import gzip
import re

import pytest

from vellumd_http import files

from .conftest import Door


async def test_files_are_asked_for_and_not_sent_again(door: Door) -> None:
    """Kept by the browser under their hash; 304 as long as they are the same."""
    async with door.ask("GET", "/static/studio.js") as got:
        tag = got.headers["ETag"]
        assert got.headers["Cache-Control"] == "no-cache"
        body = await got.read()
    assert body == (files.FOLDER / "studio" / "studio.js").read_bytes()
    async with door.ask("GET", "/static/studio.js", headers={"If-None-Match": tag}) as got:
        assert (got.status, await got.read()) == (304, b"")
    async with door.ask("GET", "/static/studio.js", headers={"If-None-Match": '"old"'}) as got:
        assert got.status == 200


async def test_files_come_packed_where_that_is_read(door: Door) -> None:
    """gzip for those who take it, plain for those who do not; caches keep them apart."""
    sizes = {}
    for accept in ("gzip, deflate", "identity"):
        headers = {"Accept-Encoding": accept}
        async with door.ask("GET", "/static/page.css", headers=headers) as got:
            assert got.headers["Vary"] == "Accept-Encoding"
            packed = got.headers.get("Content-Encoding") == "gzip"
            assert packed == ("gzip" in accept)
            sizes[packed] = int(got.headers["Content-Length"])
            assert await got.read() == (files.FOLDER / "page.css").read_bytes()
    assert sizes[True] < sizes[False] / 2


@pytest.mark.parametrize("name", sorted(files.FILES))
def test_every_file_is_there(name: str) -> None:
    """And what is sent packed is the same."""
    place = files.FILES[name][0]
    assert gzip.decompress(files.pack(place)) == files.read(place)


def test_every_module_is_named_by_the_page() -> None:
    """What a module imports is in the table; what is in the folder is served."""
    folder = files.FOLDER / "studio"
    assert {path.name for path in folder.iterdir()} == set(files.STUDIO)
    for name in files.STUDIO:
        for imported in re.findall(r'from "\./([\w.]+)"', (folder / name).read_text("utf-8")):
            assert imported in files.STUDIO, f"{name} imports {imported}"


@pytest.mark.parametrize("name", files.STUDIO)
def test_no_module_parses_texts_as_html(name: str) -> None:
    """A prompt is somebody else's text: it becomes text, never markup."""
    source = (files.FOLDER / "studio" / name).read_text("utf-8")
    for sink in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval("):
        assert sink not in source
    assert "https://" not in source and "http://" not in source.replace("http://www.w3.org", "")
