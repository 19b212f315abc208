"""One browser and one daemon for the tests of a file; each test has a page of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect

from .house import DESKTOP, PHONE, House, browsing

OpenPage = Callable[..., Page]

expect.set_options(timeout=30_000)  # two cores may have other tests to run


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Closed with the file, since its event loop would be in the way of others' tests."""
    with browsing() as opened:
        yield opened


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    """A daemon with the paper engine and a hot folder besides."""
    folder = tmp_path_factory.mktemp("house")
    options = (
        "--plugins.hotfolder.root",
        str(folder / "hot"),
        "--plugins.hotfolder.settle_s",
        "0.1",
    )
    made = House(
        folder, *options, "--plugins.hotfolder.scan_s", "1", "--plugins.paper.step_s", "0.02"
    )
    yield made
    made.close()


@pytest.fixture
def open_page(browser: Browser) -> Iterator[OpenPage]:
    """`open_page(url, phone=False, **context)`; no script of it may fail or be refused."""
    contexts = []
    wrong: list[str] = []

    def hear(kind: str, text: str) -> None:
        if kind == "error" and "Content Security Policy" in text:
            wrong.append(text)

    def opened(url: str, *, phone: bool = False, **options: Any) -> Page:
        size = (
            {"viewport": PHONE, "has_touch": True, "is_mobile": True}
            if phone
            else {"viewport": DESKTOP}
        )
        context = browser.new_context(**{**size, **options})
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(45_000)
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("console", lambda said: hear(said.type, said.text))
        page.goto(url)
        return page

    yield opened
    for context in contexts:
        context.close()
    assert wrong == []


@pytest.fixture
def page(house: House, open_page: OpenPage) -> Iterator[Page]:
    """The studio on a desktop, ready, at an idle daemon."""
    house.rest()
    opened = open_page(house.url)
    opened.wait_for_selector(".lamp.ready")
    yield opened
    house.rest()
