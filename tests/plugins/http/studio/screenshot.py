"""The studio's pictures in the README: `python -m tests.plugins.http.studio.screenshot`.

A real page in a real Chromium, at a real vellumd with its demo.
"""

from __future__ import annotations

import io
import re
import tempfile
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page

from tests.plugins.http.studio.house import DESKTOP, PHONE, ROOT, House, browsing

SAMPLES = (
    "make the circle blue", "move the star left", "use a green background",
    "turn the circle into a star", "star of picture 3",
)  # fmt: skip


def edit(page: Page, sample: str) -> None:
    """Have a sample made."""
    page.get_by_role("button", name="Start over").click()
    page.get_by_role("button", name=re.compile(sample)).last.click()
    page.wait_for_selector(".job.done .compare .after.crisp", timeout=90_000)


def keep(page: Page, name: str) -> None:
    """The page as it is, in docs."""
    shot = Image.open(io.BytesIO(page.screenshot(animations="disabled")))
    shot.convert("RGB").save(ROOT / "docs" / name, quality=82, method=6)


def main() -> None:
    """Take them."""
    with tempfile.TemporaryDirectory() as name, browsing() as browser:
        house = House(Path(name), engine="demo")
        try:
            page = browser.new_page(viewport=DESKTOP)  # type: ignore[arg-type]
            page.goto(house.url)
            page.wait_for_selector(".lamp.ready", timeout=90_000)
            for sample in SAMPLES:
                edit(page, sample)
            page.mouse.move(1, 1)
            page.wait_for_timeout(4500)  # until the engine's card has looked again
            keep(page, "studio.webp")
            phone = browser.new_context(
                viewport=PHONE,
                has_touch=True,
                is_mobile=True,
                color_scheme="dark",  # type: ignore[arg-type]
            ).new_page()
            phone.goto(house.url)
            phone.tap(".tabs [data-tab=jobs]")
            phone.locator("#list .row").first.tap()
            phone.wait_for_selector(".job.done .compare .after.crisp")
            keep(phone, "studio-phone.webp")
        finally:
            house.close()


if __name__ == "__main__":
    main()
