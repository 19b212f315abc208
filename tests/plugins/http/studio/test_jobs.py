"""The list of jobs and what is done to one: watch, order, cancel, repeat, take away."""

from __future__ import annotations

import io
import json
import re
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from PIL import Image, ImageChops
from playwright.sync_api import APIResponse, Page, Route, expect

from tests.e2e.node_red import NodeRed

from .house import House, photo, png, send, shoot


def until(happened: Callable[[], bool], seconds: float = 20) -> None:
    """Wait for something outside of the page."""
    end = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_jobs_of_every_door_come_by_themselves(house: House, page: Page) -> None:
    """Live, with their door and batch, and filters find them."""
    house.submit("from a script", batch="July")
    inbox = house.folder / "hot" / "inbox"
    (inbox / "holiday.txt").write_text("from a folder")
    (inbox / "holiday.png").write_bytes(photo())
    jobs = page.locator("#list li")
    script, folder = (jobs.filter(has_text=f"from a {door}") for door in ("script", "folder"))
    expect(script).to_contain_text("July")
    expect(folder).to_contain_text("Hot folder")
    expect(folder).to_contain_text("Done")
    page.select_option("#source", "hotfolder")
    expect(script).to_have_count(0)
    expect(folder).to_have_count(1)
    page.select_option("#source", "")
    page.get_by_label("Batch", exact=True).last.fill("July")
    page.get_by_label("Batch", exact=True).last.press("Enter")
    expect(folder).to_have_count(0)
    expect(script).to_have_count(1)
    page.get_by_label("Status").select_option("failed")
    expect(page.locator("#jobs")).to_contain_text("No job fits.")
    page.get_by_label("Batch", exact=True).last.fill("")
    page.get_by_label("Batch", exact=True).last.press("Enter")
    house.submit("fail")
    expect(jobs.filter(has_text="fail")).to_have_count(1)
    shoot(page, "filters")


def test_older_jobs_are_a_page_away(house: House, page: Page) -> None:
    """The list begins with the newest, and goes on as far as somebody wants to look."""
    house.json("/v1/queue/pause", "POST")
    for n in range(60):
        house.submit(f"number {n}", batch="many")
    page.reload()
    jobs = page.locator("#list li")
    expect(jobs).to_have_count(50)
    expect(jobs.first).to_contain_text("number 59")
    page.get_by_role("button", name="Older jobs").click()
    expect(jobs.filter(has_text="number 0")).to_have_count(1)
    assert jobs.count() >= 60
    house.rest()
    page.get_by_label("Status").select_option("queued")
    expect(jobs).to_have_count(0)


class Late:
    """Answers to `pattern` that the daemon has given and the page does not have yet."""

    def __init__(self, page: Page, pattern: str | re.Pattern[str]) -> None:
        self._page, self._pattern = page, pattern
        self._held: list[tuple[Route, APIResponse]] = []
        page.route(pattern, lambda route: self._held.append((route, route.fetch())))

    def any(self) -> bool:
        """Whether there is one by now."""
        self._page.wait_for_timeout(10)  # the browser is heard while this waits
        return bool(self._held)

    def come(self) -> None:
        """Let them come, and the page draw what they say."""
        for route, answer in self._held:
            route.fulfill(response=answer)
        self._page.unroute(self._pattern)
        drawn = "new Promise((done) => setTimeout(() => requestAnimationFrame(() => done()), 50))"
        self._page.evaluate(drawn)


def test_an_old_answer_changes_nothing(house: House, page: Page) -> None:
    """A page of jobs that was asked for earlier and comes later is not taken for the newer."""
    house.json("/v1/queue/pause", "POST")
    waiting = house.submit("overtaken")["id"]
    row = page.locator("#list li", has_text="overtaken")
    expect(row).to_contain_text("Waiting")
    late = Late(page, "**/v1/jobs?*")
    page.get_by_label("Status").select_option("queued")
    until(late.any)
    with page.expect_response(f"**/v1/jobs/{waiting}"):
        house.rest()
    expect(row).to_have_count(0)
    late.come()
    assert row.count() == 0


def test_an_answer_to_another_filter_is_heard(house: House, page: Page) -> None:
    """What changed while a filter was chosen is known, whichever question told it."""
    house.json("/v1/queue/pause", "POST")
    for n in range(24):
        house.submit(f"heard {n}")
    jobs = page.locator("#list li")
    expect(jobs.filter(has_text="heard")).to_have_count(24)
    late, first = (Late(page, re.compile(rf"/v1/jobs{end}")) for end in (r"\?$", "/[^/]+$"))
    house.rest()
    until(lambda: first.any() or late.any())
    first.come()  # the others wait for it, and are read as a page
    until(late.any)
    page.get_by_label("Status").select_option("queued")
    late.come()
    expect(jobs).to_have_count(0)


def test_what_is_gone_does_not_come_back(house: House, page: Page) -> None:
    """A page of jobs that was asked for before a job was deleted does not bring it back."""
    job = send(page, "gone for good", photo())
    page.wait_for_selector(".job.done")
    late = Late(page, "**/v1/jobs?*")
    page.get_by_label("Status").select_option("done")
    until(late.any)
    page.get_by_role("button", name="Delete").click()
    page.locator("dialog").get_by_role("button", name="Delete").click()
    row = page.locator("#list li", has_text="gone for good")
    expect(row).to_have_count(0)
    late.come()
    assert row.count() == 0
    assert job not in [one["id"] for one in house.jobs()]


def test_a_reading_that_fails_is_done_again(house: House, page: Page) -> None:
    """A job whose reading broke off, while the stream went on, does not stay as it was."""
    refused: list[str] = []

    def refuse_once(route: Route) -> None:
        if refused:
            route.continue_()
        else:
            refused.append(route.request.url)
            route.abort()

    house.json("/v1/queue/pause", "POST")
    job = house.submit("told in the end")["id"]
    row = page.locator("#list li", has_text="told in the end")
    expect(row).to_contain_text("Waiting")
    page.route(re.compile("/v1/jobs/[^/]+$"), refuse_once)
    house.json(f"/v1/jobs/{job}/cancel", "POST")
    expect(row).to_contain_text("Cancelled")
    assert len(refused) == 1


def test_a_list_that_began_anew_has_no_gap(house: House, page: Page) -> None:
    """Older jobs that were asked for before many new ones came are asked for once more."""
    house.json("/v1/queue/pause", "POST")
    for n in range(60):
        house.submit(f"old {n}", batch="gap")
    batch = page.get_by_label("Batch", exact=True).last
    batch.fill("gap")
    batch.press("Enter")
    jobs, more = page.locator("#list li"), page.get_by_role("button", name="Older jobs")
    expect(jobs).to_have_count(50)
    older, single = Late(page, re.compile("cursor=")), Late(page, re.compile("/v1/jobs/[^/]+$"))
    more.click()
    until(older.any)
    for n in range(55):  # the first is read alone, the others with a page that reaches no old one
        house.submit(f"new {n}", batch="gap")
    until(single.any)
    with page.expect_response(re.compile(r"/v1/jobs\?batch=gap$")):
        single.come()
    older.come()
    while more.is_visible():
        with page.expect_response(re.compile("cursor=")):
            more.click()
        page.wait_for_timeout(100)
    expect(jobs).to_have_count(115)
    while house.jobs("?status=queued"):
        house.rest()


def test_the_queue_is_paused_ordered_and_goes_on(house: House, page: Page) -> None:
    """What waits says so, can be put first or taken out; then all of it is made in that order."""
    page.get_by_role("button", name="Pause").click()
    expect(page.locator("#queue-text")).to_contain_text("Paused.")
    first, second, third = (house.submit(f"job {name}")["id"] for name in ("A", "B", "C"))
    jobs = page.locator("#list li")
    expect(jobs.filter(has_text="job C")).to_contain_text("Waiting, 2 before")
    jobs.filter(has_text="job C").get_by_role("button", name="Sooner").press("Enter")
    expect(jobs.filter(has_text="job C")).to_contain_text("+1")
    expect(jobs.filter(has_text="job B")).to_contain_text("Waiting, 2 before")
    expect(jobs.filter(has_text="job C").get_by_role("button", name="Sooner")).to_be_focused()
    jobs.filter(has_text="job B").locator(".row").click()
    expect(page.locator("#far")).to_have_text("Waiting: the queue is paused")
    shoot(page, "waiting")
    jobs.filter(has_text="job B").get_by_role("button", name="Cancel").click()
    expect(jobs.filter(has_text="job B")).to_contain_text("Cancelled")
    page.get_by_role("button", name="Resume").click()
    for name in ("A", "C"):
        expect(jobs.filter(has_text=f"job {name}")).to_contain_text("Done")
    ended = {job["id"]: job["ended"] for job in house.jobs()}
    assert ended[third] < ended[first]
    assert second in ended


def test_a_running_job_is_watched_and_cancelled(house: House, page: Page) -> None:
    """Step by step, with the picture so far, in the list and in the title; then it stops."""
    page.click("#more summary")
    page.fill("#steps", "25")
    page.select_option("#n", "3")
    job = send(page, "endless", photo())
    expect(page.locator("#far")).to_contain_text("Picture 2 of 3, step 2 of 25")
    expect(page.locator("#preview")).to_be_visible()
    assert str(page.locator("#preview").get_attribute("src")).startswith("data:image/jpeg")
    expect(page.locator("#list li").first).to_contain_text("Running 36 %")
    expect(page).to_have_title("36 % · vellumd")
    expect(page.locator("#engine")).to_contain_text(re.compile(r"Speed\s*[\d.]+ steps/s"))
    shoot(page, "running")
    page.locator("#stage").get_by_role("button", name="Cancel").click()
    expect(page.locator(".job.cancelled")).to_contain_text("It was cancelled.")
    assert house.json(f"/v1/jobs/{job}")["status"] == "cancelled"
    shoot(page, "cancelled")
    page.get_by_role("button", name="Try again").click()
    page.wait_for_selector(".job.running, .job.queued")
    assert house.jobs()[0]["retry_of"] == job


def test_a_tab_in_the_background_tells_how_far_its_job_is(house: House, page: Page) -> None:
    """In its title, though browsers paint nothing there."""
    page.click("#more summary")
    page.fill("#steps", "50")
    page.select_option("#n", "3")
    job = send(page, "endless behind", photo())
    page.evaluate("window.requestAnimationFrame = () => 0")
    expect(page).to_have_title("35 % · vellumd")
    house.json(f"/v1/jobs/{job}/cancel", "POST")
    expect(page).to_have_title("vellumd")


def test_a_failure_says_why_and_what_to_do(page: Page) -> None:
    """In the daemon's words, with the code to look up."""
    send(page, "fail", photo())
    failed = page.locator(".job.failed")
    expect(failed.locator(".trouble")).to_contain_text("The engine failed")
    expect(failed.locator("code")).to_have_text("internal")
    expect(failed.get_by_role("button", name="Try again")).to_be_visible()
    shoot(page, "failed")


def test_a_job_is_run_again(house: House, page: Page) -> None:
    """Exactly as it was, as another job."""
    job = send(page, "twice", photo())
    page.wait_for_selector(".job.done")
    page.get_by_role("button", name="Run again", exact=True).click()
    expect(page.locator("#list li", has_text="twice")).to_have_count(2)
    again = house.jobs()[0]
    assert again["retry_of"] == job
    assert again["request"]["seed"] == house.json(f"/v1/jobs/{job}")["request"]["seed"]


def test_a_job_is_deleted(house: House, page: Page) -> None:
    """After a question, whose safe answer has the focus; gone from page and daemon."""
    job = send(page, "forget me", photo())
    page.wait_for_selector(".job.done")
    page.get_by_role("button", name="Delete").click()
    expect(page.get_by_role("button", name="Keep")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.locator("dialog")).to_have_count(0)
    page.get_by_role("button", name="Delete").click()
    shoot(page, "delete")
    page.locator("dialog").get_by_role("button", name="Delete").click()
    expect(page.locator("#list li", has_text="forget me")).to_have_count(0)
    expect(page.locator(".job")).to_have_count(0)
    assert job not in [one["id"] for one in house.jobs()]


def test_a_job_that_another_client_deletes(house: House, page: Page) -> None:
    """It leaves the list with the next look, and nothing breaks on the way."""
    job = send(page, "soon gone", photo())
    page.wait_for_selector(".job.done")
    house.json(f"/v1/jobs/{job}", "DELETE")
    page.get_by_role("button", name="Run again", exact=True).click()
    expect(page.locator("#toasts")).to_contain_text(re.compile("no such job|no job|kept", re.I))


def test_a_result_is_downloaded(house: House, page: Page) -> None:
    """The bytes that were made, under a name of the job's."""
    job = send(page, "take me home", photo())
    page.wait_for_selector(".job.done")
    with page.expect_download() as got:
        page.get_by_role("link", name="Download").click()
    assert got.value.suggested_filename == f"{job}-1.png"
    assert Path(got.value.path()).read_bytes() == house.bytes(f"/v1/jobs/{job}/result")


def copied(page: Page, name: str) -> str:
    """The text that the page offers to copy, after it was copied."""
    page.get_by_role("button", name=name).click()
    text = page.locator("dialog textarea").input_value()
    page.get_by_role("button", name="Copy", exact=True).click()
    expect(page.locator("#toasts")).to_have_text("Copied.")
    shoot(page, name.lower().replace(" ", "-"))
    page.keyboard.press("Escape")
    return text


def same(one: bytes, other: bytes) -> bool:
    """Whether two pictures have the same pixels."""
    pictures = [Image.open(io.BytesIO(data)).convert("RGB") for data in (one, other)]
    return ImageChops.difference(*pictures).getbbox() is None


def test_a_job_as_curl(house: House, page: Page, tmp_path: Path) -> None:
    """As copied it runs in a shell and makes the same picture, whatever the prompt holds."""
    data = photo()
    job = send(page, 'it\'s $HOME; "quoted" `code` @file', data, png(20, 24))
    page.wait_for_selector(".job.done")
    text = copied(page, "Copy as curl")
    for number, content in enumerate((data, png(20, 24)), start=1):
        (tmp_path / f"picture-{number}.png").write_bytes(content)
    subprocess.run(["bash", "-c", text], cwd=tmp_path, check=True, timeout=60, capture_output=True)
    assert same((tmp_path / "result.png").read_bytes(), house.bytes(f"/v1/jobs/{job}/result"))
    made = house.jobs()[0]
    old = house.json(f"/v1/jobs/{job}")
    assert made["id"] != job
    for field in ("prompt", "seed", "steps", "true_cfg_scale", "tier", "loras", "output"):
        assert made["request"][field] == old["request"][field]


def test_a_file_name_is_no_option_of_curl(house: House, page: Page, tmp_path: Path) -> None:
    """Its comma begins no second file, its semicolon no option."""
    page.evaluate(
        """async (bytes) => {
            const form = new FormData();
            form.append("images", new File([new Uint8Array(bytes)], "a,b;c.png"));
            form.append("prompt", "named");
            const got = await fetch("/v1/jobs", { method: "POST", body: form });
            if (!got.ok) throw new Error(await got.text());
        }""",
        list(photo()),
    )
    page.locator("#list li").filter(has_text="named").locator(".row").click()
    page.wait_for_selector(".job.done")
    (tmp_path / "a,b;c.png").write_bytes(photo())
    text = copied(page, "Copy as curl")
    subprocess.run(["bash", "-c", text], cwd=tmp_path, check=True, timeout=60, capture_output=True)
    assert (tmp_path / "result.png").exists()


def test_a_job_as_node_red(house: House, page: Page, tmp_path: Path) -> None:
    """As copied a real Node-RED imports it, reads the pictures and writes the same result."""
    data = photo()
    job = send(page, "for the \"flow\" 'here'", data, png(20, 24))
    page.wait_for_selector(".job.done")
    nodes = json.loads(copied(page, "Copy as Node-RED"))
    for number, content in enumerate((data, png(20, 24)), start=1):
        (tmp_path / f"picture-{number}.png").write_bytes(content)
    environment = {one["name"]: one for one in nodes[0]["env"]}
    assert environment["PICTURE_1"]["value"] == "picture-1.png"
    for name in ("PICTURE_1", "PICTURE_2", "RESULT"):
        environment[name]["value"] = str(tmp_path / environment[name]["value"])
    node_red = NodeRed(tmp_path)
    try:
        node_red.deploy(nodes)
        node_red.press(next(node["id"] for node in nodes if node["type"] == "inject"))
        until(lambda: (tmp_path / "result.png").exists() and same_if_whole(tmp_path, house, job))
    finally:
        node_red.close()
    made = house.jobs()[0]
    assert made["id"] != job
    assert [i["width"] for i in made["request"]["images"]] == [320, 20]


def same_if_whole(folder: Path, house: House, job: str) -> bool:
    """Whether the result is written and right; a half-written one is neither."""
    try:
        return same((folder / "result.png").read_bytes(), house.bytes(f"/v1/jobs/{job}/result"))
    except OSError:
        return False


def test_many_jobs_at_once_are_read_together(house: House, page: Page) -> None:
    """A flock of events that comes while a job is read costs a page, not a request for each."""
    page.evaluate(
        """import('/static/store.js').then(({ on }) => {
            window.heard = 0;
            on("jobs", () => { window.heard += 1; });
        })"""
    )
    house.json("/v1/queue/pause", "POST")
    single = re.compile("/v1/jobs/[^/?]+$")
    asked: list[str] = []
    page.on("request", lambda got: asked.append(got.url))
    late = Late(page, single)
    for n in range(40):
        house.submit(f"flock {n}")
    until(late.any)
    page.wait_for_function("window.heard >= 40")
    late.come()
    expect(page.locator("#list li", has_text="flock")).to_have_count(40)
    assert len([url for url in asked if single.search(url)]) == 1
