"""The studio in a real browser: `python -m tests.bench.studio [--out FILE]` (needs Chromium).

How much comes over the wire, how soon the page can be used, and how long it takes from an
event of the daemon until a browser has drawn it.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import tempfile
from datetime import datetime
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, Page

from tests.bench.serving import p99
from tests.plugins.http.studio.house import DESKTOP, House, browsing, photo

VISITS = 20
JOBS = 6
STEPS = 25

WATCH = """() => {
    window.seen = { events: {}, pixels: {} };
    const note = (kind, name, at) => { window.seen[kind][name] ??= at; };
    const drawn = (name) =>
        requestAnimationFrame(() => setTimeout(() => note("pixels", name, Date.now())));
    new MutationObserver(() => {
        const step = /step (\\d+) of/.exec(document.querySelector("#far")?.textContent ?? "");
        const job = document.querySelector("#list [aria-current]") && window.current();
        if (step && job) drawn(`${job} ${step[1]}`);
        const image = document.querySelector(".compare .after");
        if (image && !image.dataset.watched) {
            image.dataset.watched = "yes";
            const id = image.src.split("/").at(-3);
            image.decode().then(() => drawn(`${id} done`));
        }
    }).observe(document.body, { childList: true, subtree: true, characterData: true });
    const source = new EventSource("/v1/events");
    source.addEventListener("step", ({ data }) => {
        const event = JSON.parse(data);
        note("events", `${event.job_id} ${event.data.step}`, Date.parse(event.at));
    });
    source.addEventListener("done", ({ data }) => {
        const event = JSON.parse(data);
        note("events", `${event.job_id} done`, Date.parse(event.at));
    });
    return import("/static/store.js").then(({ state }) => {
        window.current = () => state.selected;
    });
}"""
"""When each event was made and when its change was on the screen, in ms since 1970: the frame
after the change has been drawn when the task that it queued runs."""


def main() -> None:
    """Measure, print and perhaps keep."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.studio", description=__doc__)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, browsing() as browser:
        house = House(Path(name), "--plugins.paper.step_s", "0.08")
        try:
            figures = {**visits(browser, house), **latency(browser, house)}
        finally:
            house.close()
    print(json.dumps(figures, indent=1))
    if args.out:
        machine = f"{os.cpu_count()} cores, {platform.system()}, Python {platform.python_version()}"
        record = {"at": datetime.now().astimezone().isoformat(), "machine": machine, **figures}
        args.out.write_text(json.dumps(record, indent=1) + "\n")


def visits(browser: Browser, house: House) -> dict[str, Any]:
    """First visits, nothing cached: bytes, and when the page can be used and is filled."""
    sizes: list[int] = []
    interactive: list[float] = []
    filled: list[float] = []
    for number in range(VISITS + 1):
        context = browser.new_context(viewport=DESKTOP)  # type: ignore[arg-type]
        page = context.new_page()
        got: list[Any] = []
        page.on("requestfinished", lambda one, got=got: got.append(one))
        page.goto(house.url)
        shown = page.wait_for_function(
            "() => document.querySelector('.lamp.ready') && document.querySelector('.sample')"
            " && performance.now()"
        ).json_value()
        if number:  # the first one warms the daemon up
            filled.append(shown)
            mark = "performance.getEntriesByName('interactive')[0].startTime"
            interactive.append(page.evaluate(mark))
            sizes.append(sum(transferred(one) for one in got))
        context.close()
    return {
        "first_visit_kb": round(max(sizes) / 1000, 1),
        "requests": len(got),
        "interactive_ms_p50": round(statistics.median(interactive)),
        "interactive_ms_worst": round(max(interactive)),
        "filled_ms_p50": round(statistics.median(filled)),
        "filled_ms_worst": round(max(filled)),
    }


def transferred(request: Any) -> int:
    """Bytes of an answer on the wire, headers included."""
    sizes = request.sizes()
    return int(sizes["responseBodySize"]) + int(sizes["responseHeadersSize"])


def latency(browser: Browser, house: House) -> dict[str, Any]:
    """From an event's own time until its change is drawn."""
    page = browser.new_page(viewport=DESKTOP)  # type: ignore[arg-type]
    page.goto(house.url)
    page.wait_for_selector(".lamp.ready")
    page.evaluate(WATCH)
    files = [{"name": "photo.png", "mimeType": "image/png", "buffer": photo(1024, 768)}]
    page.set_input_files("#pick input", files)  # type: ignore[arg-type]
    page.click("#more summary")
    page.fill("#steps", str(STEPS))
    for number in range(JOBS):
        edit(page, f"edit {number}")
    seen = page.evaluate("window.seen")
    waits = {
        name: seen["pixels"][name] - at
        for name, at in seen["events"].items()
        if name in seen["pixels"]
    }
    steps = [wait for name, wait in waits.items() if not name.endswith("done")]
    ends = [wait for name, wait in waits.items() if name.endswith("done")]
    assert len(steps) > 0.9 * JOBS * STEPS and len(ends) == JOBS
    return {
        "steps_seen": len(steps),
        "step_to_pixel_ms_p50": round(statistics.median(steps)),
        "step_to_pixel_ms_p99": round(p99(steps)),
        "done_to_picture_ms_p50": round(statistics.median(ends)),
        "done_to_picture_ms_worst": max(ends),
    }


def edit(page: Page, prompt: str) -> None:
    """One edit, from the button to its result."""
    page.fill("#prompt", prompt)
    page.click("#submit")
    page.wait_for_selector(f".job.done .prompt:text-is('{prompt}')", timeout=30_000)
    page.wait_for_function("() => document.querySelector('.compare .after')?.complete")
    page.wait_for_timeout(300)


if __name__ == "__main__":
    main()
