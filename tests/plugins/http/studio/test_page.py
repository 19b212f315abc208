"""The page itself: its states, its looks, who gets in, and who can use it how."""

from __future__ import annotations

import io
import json
import re
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import zxingcpp
from PIL import Image
from playwright.sync_api import Browser, Locator, Page, Request, Route, expect

from vellumd import Keyring

from .conftest import OpenPage
from .house import DESKTOP, PHONE, House, add, file, findings, photo, png, send, shoot

TABS = ("compose", "stage", "jobs", "engine")


@pytest.fixture
def own(tmp_path: Path) -> Iterator[list[House]]:
    """Daemons of one test alone; closed after it."""
    made: list[House] = []
    yield made
    for house in made:
        house.close()


def test_a_daemon_that_dies_and_comes_back(
    own: list[House], open_page: OpenPage, tmp_path: Path
) -> None:
    """Said, nothing lost, and what happened meanwhile is there without a reload."""
    own.append(house := House(tmp_path, "--plugins.paper.step_s", "0.01"))
    page = open_page(house.url)
    job = send(page, "before", photo())
    page.wait_for_selector(".job.done")
    page.fill("#prompt", "half a thought")
    house.json("/v1/queue/pause", "POST")
    waiting = house.submit("through the night")["id"]
    expect(page.locator("#list li").first).to_contain_text("Waiting")
    house.kill()
    expect(page.locator("#banner")).to_contain_text("does not answer")
    page.click("#submit")
    expect(page.locator("#refused")).to_contain_text("Nothing is lost")
    shoot(page, "offline")
    expect(page.locator(".job.done")).to_be_visible()
    house.start()
    house.json("/v1/queue/resume", "POST")
    expect(page.locator("#banner")).to_be_hidden()
    expect(page.locator("#list li", has_text="through the night")).to_contain_text("Done")
    expect(page.locator("#prompt")).to_have_value("half a thought")
    page.click("#submit")
    expect(page.locator("#list li", has_text="half a thought")).to_contain_text("Done")
    assert {job, waiting} < {one["id"] for one in house.jobs()}
    assert len(house.jobs()) == 3


def test_the_stream_is_taken_up_where_it_broke(
    own: list[House], open_page: OpenPage, tmp_path: Path
) -> None:
    """With the id of the last event, so that the daemon sends what was missed."""
    own.append(house := House(tmp_path))
    page = open_page(house.url)
    send(page, "one", photo())
    page.wait_for_selector(".job.done")
    house.kill()
    expect(page.locator("#banner")).to_be_visible()
    with page.expect_request("**/v1/events?preview=1") as asked:
        house.start()
        page.wait_for_selector("#banner", state="hidden")
    assert int(asked.value.headers["last-event-id"]) >= 3


def test_the_engine_is_unloaded_and_loaded(house: House, page: Page) -> None:
    """The card says what is; the switch does what it says."""
    engine = page.locator("#engine")
    expect(engine).to_contain_text("standard")
    engine.get_by_role("button", name="Unload").click()
    expect(engine.locator(".lamp")).to_have_text("Unloaded")
    shoot(page, "unloaded")
    engine.get_by_role("button", name="Load", exact=True).click()
    expect(engine.locator(".lamp")).to_have_text("Ready")


def test_an_engine_that_loads_or_cannot(
    own: list[House], open_page: OpenPage, tmp_path: Path
) -> None:
    """Loading has a phase; a failure its reason; jobs are accepted all the same."""
    for name, option, text in (
        ("loading", ("--plugins.paper.load_s", "5"), "Loading"),
        ("broken", ("--plugins.paper.load_error", "model_missing"), "Failed"),
    ):
        (folder := tmp_path / name).mkdir()
        own.append(house := House(folder, *option))
        page = open_page(house.url)
        expect(page.locator(".lamp")).to_contain_text(text)
        send(page, "have patience", photo())
        expect(page.locator("#list li").first).to_contain_text("Waiting")
        shoot(page, f"engine-{name}")
    expect(page.locator("#engine .trouble")).to_contain_text("missing")


def test_light_and_dark(house: House, open_page: OpenPage) -> None:
    """As the system has it, or as chosen; the choice stays."""

    def ground(page: Page) -> str:
        return str(page.evaluate("getComputedStyle(document.body).backgroundColor"))

    light, dark = (open_page(house.url, color_scheme=scheme) for scheme in ("light", "dark"))
    assert ground(light) != ground(dark)
    dark.get_by_role("button", name="Light or dark").click()
    assert ground(dark) == ground(light)
    dark.reload()
    assert ground(dark) == ground(light)
    dark.get_by_role("button", name="Light or dark").click()
    assert ground(dark) != ground(light)


def test_by_keyboard_alone(house: House, page: Page) -> None:
    """Every control can be reached in order, is seen to have the focus, and is pressed by keys."""
    add(page, photo())  # what the system's own dialog would hand over
    page.locator("body").click(position={"x": 640, "y": 5})
    reached: list[str] = []
    for _ in range(40):
        page.keyboard.press("Tab")
        told = page.evaluate(
            """() => {
                const one = document.activeElement;
                const frame = one.type === "file" ? one.parentElement : one;
                return [one.id || one.getAttribute("aria-label") || one.textContent.trim(),
                        getComputedStyle(frame).outlineStyle, one === document.body];
            }"""
        )
        name, outline, away = told
        if away or name in reached[:1]:
            break
        assert outline != "none", f"{name} does not show that it has the focus"
        reached.append(name)
    for wanted in ("phone", "theme", "Paint a mask", "prompt", "preset", "n", "submit", "source"):
        assert wanted in reached, reached
    page.focus("#prompt")
    page.keyboard.type("by keys alone")
    page.keyboard.press("Control+Enter")
    page.wait_for_selector(".job.done")
    page.get_by_role("slider", name="Before and after").focus()
    page.keyboard.press("ArrowRight")
    page.locator("#list .row").first.focus()
    page.keyboard.press("Enter")
    expect(page.locator("#list .row").first).to_have_attribute("aria-current", "true")


def press(target: Locator) -> None:
    """Go there and press it by keys."""
    target.focus()
    target.page.keyboard.press("Enter")


def test_the_keyboard_stays_where_it_is(house: House, page: Page) -> None:
    """What is pressed stays in focus when its job is drawn anew; if it is gone, the part does."""
    stage = page.locator("#stage")

    def named(name: str) -> Locator:
        return stage.get_by_role("button", name=name, exact=True)

    add(page, photo())
    page.get_by_label("What shall change?").fill("one of two")
    page.get_by_label("Results").select_option("2")
    press(page.get_by_role("button", name="Edit", exact=True))
    page.wait_for_selector(".job.done")
    expect(page.get_by_role("button", name="Edit", exact=True)).to_be_focused()
    press(named("Result 2"))
    expect(named("Result 2")).to_have_attribute("aria-pressed", "true")
    expect(named("Result 2")).to_be_focused()
    press(stage.locator("summary"))
    press(named("Run again"))
    expect(page.locator("#list li.done").filter(has_text="one of two")).to_have_count(2)
    expect(stage).to_be_focused()  # while it ran there was nothing to run again
    expect(stage.locator("details")).to_have_attribute("open", "")
    house.json("/v1/queue/pause", "POST")
    press(named("Run again"))
    press(named("Cancel"))
    expect(stage).to_contain_text("It was cancelled.")
    expect(stage).to_be_focused()
    page.keyboard.press("Tab")
    expect(named("Close")).to_be_focused()
    page.keyboard.press("Enter")
    expect(stage.get_by_role("heading", name="This is the demo")).to_be_visible()
    expect(stage).to_be_focused()
    press(named("make the circle blue"))
    expect(stage.get_by_role("heading", name="make the circle blue")).to_be_visible()
    expect(stage).to_be_focused()


def test_the_keyboard_stays_in_the_list(house: House, page: Page) -> None:
    """What is cancelled leaves a list of waiting jobs: the next one has the focus then."""
    house.json("/v1/queue/pause", "POST")
    for name in ("first", "second"):
        house.submit(f"wait {name}")
    page.get_by_label("Status").select_option("queued")
    rows = page.locator("#list li")
    expect(rows).to_have_count(2)
    press(rows.filter(has_text="second").get_by_role("button", name="Cancel"))
    expect(rows).to_have_count(1)
    expect(rows.locator(".row")).to_be_focused()
    press(rows.get_by_role("button", name="Cancel"))
    expect(rows).to_have_count(0)
    expect(page.get_by_role("button", name="Resume")).to_be_focused()


@contextmanager
def pressed(target: Locator, way: str = "mouse") -> Iterator[None]:
    """It is pressed, and let go after the block: what people do takes a tenth of a second."""
    page = target.page
    target.hover(trial=True)  # scrolls, and once more if the page takes its place meanwhile
    if way == "key":
        target.focus()
        page.keyboard.down("Space")
        yield
        page.keyboard.up("Space")
    elif way == "finger":
        box = target.bounding_box()
        assert box
        at = {"x": box["x"] + box["width"] / 2, "y": box["y"] + box["height"] / 2}
        touch = page.context.new_cdp_session(page)
        touch.send("Input.dispatchTouchEvent", {"type": "touchStart", "touchPoints": [at]})
        yield
        touch.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
    else:
        target.hover()
        page.mouse.down()
        yield
        page.mouse.up()


def told(page: Page, job: str, status: str) -> None:
    """Wait until the page knows it and had time to draw it."""
    page.evaluate("import('/static/store.js').then(({ state }) => { window.state = state; })")
    page.wait_for_function(
        "([id, status]) => state.jobs.get(id)?.status === status", arg=[job, status]
    )
    painted(page)


def painted(page: Page) -> None:
    """Wait for two paints, the second of which is after whatever the first one drew."""
    frame = "new Promise(requestAnimationFrame)"
    page.evaluate(f"{frame}.then(() => {frame})")


@pytest.mark.parametrize("way", ["mouse", "finger", "key"])
def test_a_row_that_changes_while_it_is_pressed(
    house: House, open_page: OpenPage, way: str
) -> None:
    """It is the one that opens, though its job ends and another comes above it meanwhile."""
    house.rest()
    page = open_page(house.url, phone=way == "finger")
    page.wait_for_selector(".lamp.ready", state="attached")
    house.json("/v1/queue/pause", "POST")
    job = house.submit(f"pressed by {way}")["id"]
    if way == "finger":
        page.tap(".tabs [data-tab=jobs]")
    row = page.locator("#list .row", has_text=f"pressed by {way}")
    with pressed(row, way):
        house.json(f"/v1/jobs/{job}/cancel", "POST")
        above = house.submit("another")["id"]
        told(page, job, "cancelled")
        told(page, above, "queued")
    expect(page.locator(".job.cancelled .prompt")).to_have_text(f"pressed by {way}")
    expect(row).to_contain_text("Cancelled")
    expect(page.locator("#list .row").first).to_contain_text("another")
    house.rest()


def test_what_is_pressed_while_the_page_changes(house: House, page: Page) -> None:
    """Every button is heard: of the engine as jobs come, of a job as it begins, of a picture."""
    house.json("/v1/queue/pause", "POST")
    lamp, switch = page.locator("#engine .lamp"), page.locator("#engine-switch")
    with pressed(switch):
        job = house.submit("held")["id"]
        told(page, job, "queued")
    expect(lamp).to_have_text("Unloaded")
    switch.click()
    expect(lamp).to_have_text("Ready")
    page.locator("#list .row", has_text="held").click()
    with pressed(page.locator("#stage").get_by_role("button", name="Close")):
        house.json(f"/v1/jobs/{job}/cancel", "POST")
        told(page, job, "cancelled")
    expect(page.locator(".job")).to_have_count(0)
    late: list[Route] = []
    page.route("**/v1/inputs", lambda route: late.append(route))
    with page.expect_request("**/v1/inputs"):
        page.set_input_files("#pick input", [file("late.png", png())])
    with pressed(page.locator(".tile .remove")):
        with page.expect_response("**/v1/inputs") as got:
            late[0].continue_()
        got.value.finished()
        painted(page)
    expect(page.locator(".tile")).to_have_count(0)


def test_a_press_whose_end_nobody_hears_of(house: House, page: Page) -> None:
    """It holds the page up until the pointer moves again, as after a menu of the browser."""
    page.locator("#theme").dispatch_event("pointerdown")
    told(page, house.submit("nobody let go")["id"], "done")
    row = page.locator("#list .row", has_text="nobody let go")
    assert row.count() == 0
    page.mouse.move(640, 400)
    expect(row).to_contain_text("Done")


def overflow(page: Page) -> int:
    """Pixels by which the page is wider than its window."""
    return int(page.evaluate("document.documentElement.scrollWidth - innerWidth"))


def test_on_a_phone(house: House, open_page: OpenPage) -> None:
    """Four tabs at the thumb, nothing wider than the screen, no button too small for a finger."""
    house.rest()
    page = open_page(house.url, phone=True)
    page.wait_for_selector(".lamp.ready", state="attached")
    send(page, "on the way home", photo(240, 320), png())
    page.wait_for_selector(".job.done")
    expect(page.locator("#stage")).to_be_visible()
    assert page.locator(".tabs").bounding_box()["y"] > PHONE["height"] - 90  # type: ignore[index]
    house.json("/v1/queue/pause", "POST")
    house.submit("this one waits")
    for tab in TABS:
        page.tap(f".tabs [data-tab={tab}]")
        expect(page.locator(f"#{tab}")).to_be_visible()
        for other in set(TABS) - {tab}:
            expect(page.locator(f"#{other}")).to_be_hidden()
        assert overflow(page) <= 0, tab
        small = page.evaluate(
            """() => [...document.querySelectorAll("button, a.main, select, summary")]
                .filter((one) => one.checkVisibility() && one.tagName !== "SUMMARY")
                .map((one) => [one.ariaLabel || one.textContent, one.getBoundingClientRect()])
                .filter(([, box]) => box.height < 40 || box.width < 40)
                .map(([name, box]) => `${name} ${box.width}x${box.height}`)"""
        )
        assert small == [], tab
        shoot(page, f"phone-{tab}")
    house.rest()


def test_by_a_name_over_plain_http(
    browser: Browser, own: list[House], open_page: OpenPage, tmp_path: Path
) -> None:
    """Where browsers give pages no clipboard, no UUIDs and more: all of it works all the same."""
    own.append(house := House(tmp_path, "--plugins.http.allowed_hosts", '["gpu-box.lan"]'))
    page = open_page(f"http://gpu-box.lan:{house.port}/")
    missing = page.evaluate(
        """() => [isSecureContext, typeof crypto.randomUUID, typeof crypto.subtle,
                  typeof navigator.clipboard, typeof navigator.share, typeof navigator.wakeLock,
                  typeof navigator.serviceWorker]"""
    )
    assert missing == [False, *["undefined"] * 6]
    page.wait_for_selector(".lamp.ready")
    send(page, "over plain http", photo())
    page.wait_for_selector(".job.done")
    assert page.get_by_role("button", name="Share").count() == 0
    page.get_by_role("button", name="Copy as curl").click()
    page.get_by_role("button", name="Copy", exact=True).click()
    expect(page.locator("#toasts")).to_have_text("Copied.")
    text = page.locator("dialog textarea").input_value()
    assert f"http://gpu-box.lan:{house.port}/v1/jobs" in text
    page.keyboard.press("Escape")
    page.locator("#prompt").fill("")
    page.locator("#prompt").press("Control+v")
    expect(page.locator("#prompt")).to_have_value(text)
    page.get_by_role("button", name="Light or dark").click()


def test_by_a_link_with_a_key(own: list[House], open_page: OpenPage, tmp_path: Path) -> None:
    """The key leaves the address at once and is kept by no script; taken back, the page says so."""
    ring = Keyring(tmp_path / "data" / "keys.json")
    (tmp_path / "data").mkdir()
    key = ring.add("desk")
    ring.add("other")
    own.append(house := House(tmp_path))
    page = open_page(house.url)
    expect(page.get_by_label("Key")).to_be_visible()
    shoot(page, "key")
    assert findings(page) == []
    page.get_by_label("Key").fill("wrong")
    page.get_by_role("button", name="Open").click()
    expect(page.get_by_role("status")).to_contain_text("opens nothing")
    page.goto("about:blank")
    page.goto(f"{house.url}/#key={key}")
    page.wait_for_selector("#compose")
    assert page.url == f"{house.url}/"
    assert page.evaluate("document.cookie + JSON.stringify(localStorage)") == "{}"
    send(page, "with a key", photo())
    page.wait_for_selector(".job.done")
    page.get_by_role("button", name="Copy as curl").click()
    assert "Bearer $VELLUMD_KEY" in page.locator("dialog textarea").input_value()
    page.keyboard.press("Escape")
    ring.remove("desk")
    page.get_by_role("button", name="Run again", exact=True).click()
    expect(page.locator("#banner")).to_contain_text("opens nothing any more")
    page.get_by_role("link", name="Sign in").click()
    expect(page.get_by_label("Key")).to_be_visible()


def test_a_phone_comes_in_by_a_code(own: list[House], open_page: OpenPage, tmp_path: Path) -> None:
    """What a camera reads from the screen opens the door, once."""
    ring = Keyring(tmp_path / "data" / "keys.json")
    (tmp_path / "data").mkdir()
    key = ring.add("desk")
    own.append(house := House(tmp_path, "--plugins.http.host", "0.0.0.0"))
    desk = open_page(f"{house.url}/#key={key}")
    desk.wait_for_selector(".lamp.ready")
    desk.get_by_role("button", name="Open on a phone").click()
    expect(desk.locator(".qr")).to_be_visible()
    shoot(desk, "code")
    (read,) = zxingcpp.read_barcodes(Image.open(io.BytesIO(desk.locator(".qr").screenshot())))
    assert read.text == desk.locator(".link").inner_text()
    assert re.fullmatch(rf"http://[\d.]+:{house.port}/#code=[\w-]+", read.text)
    assert "127.0.0.1" not in read.text and key not in read.text
    phone = open_page(read.text, phone=True)
    phone.wait_for_selector("#compose")
    assert "code" not in phone.url
    expect(phone.locator("#submit")).to_be_visible()
    stranger = open_page(read.text, phone=True)
    expect(stranger.get_by_role("status")).to_contain_text("used before")
    desk.get_by_role("button", name="New code").click()
    expect(desk.locator(".link")).not_to_have_text(read.text)


def test_where_no_phone_can_come_in(house: House, page: Page) -> None:
    """A daemon for this machine alone says so, and how that is changed."""
    page.get_by_role("button", name="Open on a phone").click()
    expect(page.locator("dialog")).to_contain_text("--plugins.http.host 0.0.0.0")


def test_a_tab_that_nobody_sees_gives_its_connection_back(
    house: House, open_page: OpenPage
) -> None:
    """Browsers open six to a host, so a seventh tab would wait for ever; seen again, it goes on."""
    page = open_page("about:blank")
    page.clock.install()
    page.add_init_script(
        "Object.defineProperty(document, 'hidden', { get: () => window.unseen ?? false });"
    )
    page.goto(house.url)
    expect(page.locator("#queue-text")).to_have_text("Nothing waits.")
    look = "document.dispatchEvent(new Event('visibilitychange'))"
    page.evaluate(f"window.unseen = true; {look}")
    with page.expect_event("requestfailed", lambda request: "/v1/events" in request.url):
        page.clock.fast_forward(61_000)
    house.submit("while nobody looked")
    page.clock.fast_forward(61_000)
    assert page.locator("#banner").is_hidden()
    with page.expect_request("**/v1/events?*"):
        page.evaluate(f"window.unseen = false; {look}")
    expect(page.locator("#list li", has_text="while nobody looked")).to_contain_text("Done")


def test_codes_of_every_size_are_read(page: Page) -> None:
    """As another program reads them; versions 1 to 10."""
    for length in (1, 14, 15, 40, 60, 83, 100, 120, 151, 180, 213):
        told = ("https://pics.example/#code=" + "aZ09-_~ü" * 40).encode()[:length]
        text = told.decode(errors="ignore")
        page.evaluate(
            """async (text) => {
                const { qr } = await import("/static/qr.js");
                document.querySelector(".qr")?.remove();
                document.body.append(qr(text, "code"));
            }""",
            text,
        )
        seen = Image.open(io.BytesIO(page.locator(".qr").screenshot()))
        assert [one.text for one in zxingcpp.read_barcodes(seen)] == [text]


def test_without_script(house: House, browser: Browser, tmp_path: Path) -> None:
    """The form posts as it is, and the answer is the picture."""
    (tmp_path / "photo.png").write_bytes(png(50, 40, "red"))
    context = browser.new_context(java_script_enabled=False, viewport=DESKTOP)
    page = context.new_page()
    page.goto(house.url)
    expect(page.locator("noscript p")).to_be_visible()
    expect(page.locator("#stage")).to_be_hidden()
    shoot(page, "without-script")
    page.set_input_files("input[type=file]", tmp_path / "photo.png")
    page.fill("[name=prompt]", "without script")
    with page.expect_response("**/generate") as got:
        page.click("#submit")
    assert got.value.headers["content-type"] == "image/png"
    assert house.jobs()[0]["request"]["prompt"] == "without script"
    context.close()


@pytest.mark.parametrize("phone", [False, True], ids=["desktop", "phone"])
def test_nobody_is_kept_out(house: House, open_page: OpenPage, phone: bool) -> None:
    """axe-core has nothing serious to say of any state, light or dark."""
    house.rest()
    page = open_page(house.url, phone=phone, color_scheme="light")
    page.wait_for_selector(".lamp.ready", state="attached")
    found: dict[str, list[str]] = {}

    def look(name: str, tab: str | None = None) -> None:
        if phone and tab:
            page.tap(f".tabs [data-tab={tab}]")
        for scheme, rules in (("light", None), ("dark", ["color-contrast"])):
            page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
            found[f"{scheme} {name}"] = findings(page, rules)
            shoot(page, f"{'phone' if phone else 'desktop'}-{name}-{scheme}")
        page.emulate_media(color_scheme="light")

    look("empty", "stage")
    if phone:
        page.tap(".tabs [data-tab=compose]")
    add(page, photo(), png())
    page.click("#more summary")
    look("compose", "compose")
    send(page, "make it evening")
    page.wait_for_selector(".job.done .compare .after")
    page.click(".facts summary")
    look("done", "stage")
    house.json("/v1/queue/pause", "POST")
    house.submit("this one waits", priority=2)
    page.wait_for_selector("#list .order", state="attached")
    look("jobs", "jobs")
    page.click("#list li.queued .row")
    look("waiting")
    house.rest()
    if phone:
        look("engine", "engine")
        page.tap(".tabs [data-tab=compose]")
    send(page, "fail")
    page.wait_for_selector(".job.failed")
    look("failed")
    page.get_by_role("button", name="Copy as curl").click()
    look("dialog")
    assert {name: texts for name, texts in found.items() if texts} == {}


def test_what_the_page_costs(house: House, open_page: OpenPage) -> None:
    """Everything it takes to be used is small; a second visit asks and is sent nothing."""
    got: list[Request] = []
    page = open_page("about:blank")
    page.on("requestfinished", lambda one: got.append(one))
    page.goto(house.url)
    page.wait_for_selector(".lamp.ready")
    assert 10_000 < sum(one.sizes()["responseBodySize"] for one in got) < 150_000
    files = {one.url for one in got if "/static/" in one.url}
    got.clear()
    page.goto(house.url)
    page.wait_for_selector(".lamp.ready")
    again = [one for one in got if one.url in files]
    assert files and again
    assert sum(one.sizes()["responseBodySize"] for one in again) == 0


def test_the_api_is_asked_for_nothing_else(house: House, page: Page) -> None:
    """Whatever the page asks is in the description of the API."""
    described = json.loads(urllib.request.urlopen(f"{house.url}/openapi.json").read())["paths"]
    patterns = [re.sub(r"\{[^}]+\}", "[^/]+", path) for path in described]
    asked: set[str] = set()
    page.on("request", lambda got: asked.add(got.url))
    page.reload()
    send(page, "watch me", photo())
    page.wait_for_selector(".job.done")
    page.get_by_role("button", name="Change and run again").click()
    for url in asked:
        if url.startswith("http"):
            path = url.removeprefix(house.url).partition("?")[0]
            assert any(re.fullmatch(pattern, path) for pattern in patterns), url
