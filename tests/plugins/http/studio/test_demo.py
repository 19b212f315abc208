"""The page at the demo model: what it knows, and its samples at a click."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator

import pytest
from PIL import Image
from playwright.sync_api import expect

from .conftest import OpenPage
from .house import House, shoot


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    """A daemon as `make run` starts it."""
    made = House(tmp_path_factory.mktemp("demo"), engine="demo")
    yield made
    made.close()


def test_a_sample_at_a_click(demo: House, open_page: OpenPage) -> None:
    """Nothing has to be chosen, typed or waited for: the engine may still be loading."""
    page = open_page(demo.url)
    expect(page.locator("#stage")).to_contain_text("This is the demo")
    expect(page.locator("#stage")).to_contain_text("eight colours")
    page.get_by_role("button", name="make the circle blue").click()
    expect(page.locator(".tile")).to_have_count(1)
    page.wait_for_selector(".job.done .compare .after.crisp", timeout=90_000)
    shoot(page, "demo-done")
    job = demo.jobs()[0]
    picture = Image.open(io.BytesIO(demo.bytes(f"/v1/jobs/{job['id']}/result"))).convert("RGB")
    red, _, blue = picture.getpixel((48, 48))  # type: ignore[misc]
    assert blue > red + 80
    expect(page.locator("#stage")).to_contain_text("not a real model")


def test_a_sample_of_three_pictures_is_watched(demo: House, open_page: OpenPage) -> None:
    """Each in its place; the preview of a running step is the picture so far, shown at once."""
    page = open_page(demo.url, phone=True)
    page.select_option("#preset", "original")
    page.tap(".tabs [data-tab=stage]")
    page.get_by_role("button", name=re.compile("star of picture 3")).tap()
    page.wait_for_function(  # seen and decoded in one look: it is gone with the job's end
        "() => document.querySelector('#preview:not([hidden])')?.naturalWidth > 1", timeout=90_000
    )
    shoot(page, "demo-running")
    page.wait_for_selector(".job.done .compare", timeout=90_000)
    job = demo.jobs()[0]
    assert [one["name"] for one in job["request"]["images"]] == [""] * 3
    assert len({one["sha256"] for one in job["request"]["images"]}) == 3
    shoot(page, "demo-phone")
