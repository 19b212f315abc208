"""Making an edit on the page: pictures, mask, instruction, options, presets."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil

import pytest
from PIL import Image, ImageChops
from playwright.sync_api import Page, Route, expect

from .conftest import OpenPage
from .house import House, add, file, photo, png, send, shoot


def natural(page: Page, selector: str) -> list[int]:
    """Pixels of the picture that the page shows there."""
    found: list[int] = page.locator(selector).evaluate(
        "image => image.decode().then(() => [image.naturalWidth, image.naturalHeight])"
    )
    return found


def test_from_picture_to_result(house: House, page: Page) -> None:
    """Chosen, told, sent, watched, seen before and after; the form is as it was, for the next."""
    shoot(page, "empty")
    job = send(page, "make it evening", photo())
    page.wait_for_selector(".job.done .compare .after")
    assert natural(page, ".compare .before") == [320, 240]
    assert natural(page, ".compare .after") == [320, 240]
    row = page.locator("#list li").first
    expect(row).to_contain_text("make it evening")
    expect(row).to_contain_text("Done in")
    expect(row).to_contain_text("HTTP")
    expect(page.locator("#prompt")).to_have_value("make it evening")
    shoot(page, "done")
    request = house.json(f"/v1/jobs/{job}")["request"]
    assert (request["prompt"], request["preset"], request["n"]) == ("make it evening", "fastest", 1)


def test_before_and_after_by_mouse_and_keys(house: House, page: Page) -> None:
    """The line goes where it is dragged; the picture is cut there."""
    send(page, "make it evening", photo())
    frame = page.locator(".compare")
    box = frame.bounding_box()
    assert box
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + 40)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.2, box["y"] + 40, steps=4)
    page.mouse.up()
    line = frame.get_by_role("slider", name="Before and after")
    assert 15 <= int(line.input_value()) <= 25
    line.press("End")
    assert line.input_value() == "100"
    clip = page.locator(".compare .after").evaluate("image => getComputedStyle(image).clipPath")
    assert "100%" in clip


def test_pictures_by_drop_and_paste(house: House, page: Page) -> None:
    """Files that are dropped anywhere, and pictures of the clipboard."""
    for event, field, target in (
        ("drop", "dataTransfer", "#stage"),
        ("paste", "clipboardData", "#prompt"),
    ):
        page.evaluate(
            """([event, field, target, text]) => {
                const bytes = Uint8Array.from(atob(text), (char) => char.charCodeAt(0));
                const data = new DataTransfer();
                data.items.add(new File([bytes], `${event}.png`, { type: "image/png" }));
                const kind = event === "drop" ? DragEvent : ClipboardEvent;
                const made = new kind(event, { [field]: data, bubbles: true, cancelable: true });
                document.querySelector(target).dispatchEvent(made);
            }""",
            [event, field, target, base64.b64encode(png()).decode()],
        )
    expect(page.locator(".tile .foot small")).to_have_text(["64×48", "64×48"])
    job = send(page, "two at once")
    assert len(house.json(f"/v1/jobs/{job}")["request"]["images"]) == 2


def test_a_phone_takes_a_photo(house: House, open_page: OpenPage) -> None:
    """By its camera; there is no such button where there is no finger."""
    page = open_page(house.url, phone=True)
    camera = page.locator(".camera input")
    expect(page.locator(".camera")).to_be_visible()
    assert camera.get_attribute("capture") == "environment"
    camera.set_input_files([file("IMG_1.png", photo())])
    expect(page.locator(".tile .foot small")).to_have_text("320×240")
    shoot(page, "phone-compose")
    desktop = open_page(house.url)
    expect(desktop.locator(".camera")).to_be_hidden()


def test_pictures_are_ordered(house: House, page: Page) -> None:
    """By buttons, which keep the focus, and by dragging; that is the order they are sent in."""
    add(page, png(20, 20), png(30, 20), png(40, 20))
    page.get_by_role("button", name="Move picture 3 forward").press("Enter")
    page.keyboard.press("Enter")
    sizes = page.locator(".tile .foot small")
    expect(sizes).to_have_text(["40×20", "20×20", "30×20"])
    page.drag_and_drop(".tile >> nth=2", ".tile >> nth=0")
    expect(sizes).to_have_text(["30×20", "40×20", "20×20"])
    page.get_by_role("button", name="Remove picture 2").click()
    expect(sizes).to_have_text(["30×20", "20×20"])
    job = send(page, "in this order")
    images = house.json(f"/v1/jobs/{job}")["request"]["images"]
    assert [image["width"] for image in images] == [30, 20]


def test_more_pictures_than_an_edit_takes(page: Page) -> None:
    """The first four count, and the page says so; there is no place for a fifth."""
    files = [file(f"{n}.png", png(20 + n, 20)) for n in range(5)]
    page.set_input_files("#pick input", files)
    expect(page.locator(".tile")).to_have_count(4)
    expect(page.locator("#toasts")).to_contain_text("at most 4 pictures")
    expect(page.locator("#pick")).to_be_hidden()


def test_what_is_no_picture(page: Page) -> None:
    """Told at the picture at once, and again where it is sent all the same."""
    page.set_input_files("#pick input", [file("notes.png", b"no picture at all")])
    expect(page.locator(".tile .fault")).to_be_visible()
    page.fill("#prompt", "try it")
    page.click("#submit")
    expect(page.locator("#refused")).to_be_visible()
    shoot(page, "bad-picture")
    page.get_by_role("button", name="Remove picture 1").click()
    page.set_input_files("#pick input", [file("notes.txt", b"text", "text/plain")])
    expect(page.locator("#toasts")).to_contain_text("no picture")
    expect(page.locator(".tile")).to_have_count(0)


def test_what_is_missing_is_said(page: Page) -> None:
    """Picture and instruction, in words; what the daemon refuses, in its words."""
    page.click("#submit")
    expect(page.locator("#refused")).to_have_text("Add a picture first.")
    add(page, png())
    page.click("#submit")
    expect(page.locator("#refused")).to_have_text("Say what shall change.")
    page.fill("#prompt", "x" * 20_000)
    page.click("#submit")
    expect(page.locator("#refused")).to_contain_text("longer than")


def mask_of(house: House, job: str) -> Image.Image:
    """The job's mask."""
    return Image.open(io.BytesIO(house.bytes(f"/v1/jobs/{job}/mask"))).convert("L")


def test_a_mask_is_painted(house: House, page: Page) -> None:
    """White where the pointer was, black elsewhere, shown on the picture; erased, undone."""
    add(page, photo())
    page.get_by_role("button", name="Paint a mask").click()
    box = page.locator(".board canvas").bounding_box()
    assert box

    def drag(left: float, right: float, y: float) -> None:
        page.mouse.move(box["x"] + box["width"] * left, box["y"] + box["height"] * y)
        page.mouse.down()
        page.mouse.move(box["x"] + box["width"] * right, box["y"] + box["height"] * y, steps=6)
        page.mouse.up()

    drag(0.1, 0.9, 0.25)
    drag(0.1, 0.9, 0.75)
    page.get_by_role("button", name="Undo").click()
    page.get_by_role("button", name="Erase").click()
    drag(0.7, 0.9, 0.25)
    shoot(page, "mask")
    page.get_by_role("button", name="Use the mask").click()
    expect(page.locator(".tile .masked")).to_be_visible()
    mask = mask_of(house, send(page, "only there"))
    assert mask.size == (320, 240)
    seen = [mask.getpixel(at) for at in ((100, 60), (270, 60), (100, 180), (5, 5))]
    assert seen == [255, 0, 0, 0]
    page.wait_for_selector(".job.done")
    # The engine inverts, so only what the mask shows is another than before.
    after = Image.open(io.BytesIO(house.bytes(f"/v1/jobs/{house.jobs()[0]['id']}/result")))
    before = Image.open(io.BytesIO(photo()))
    changed = ImageChops.difference(before, after.convert("RGB"))
    assert changed.getpixel((100, 62)) != (0, 0, 0)
    assert changed.getpixel((100, 180)) == (0, 0, 0)


def test_a_mask_by_keys(house: House, page: Page) -> None:
    """Arrows move the brush, space paints; an empty mask is none."""
    add(page, photo())
    page.get_by_role("button", name="Paint a mask").press("Enter")
    canvas = page.locator(".board canvas")
    expect(canvas).to_be_focused()
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("Space")
    expect(page.locator(".board .cursor")).to_be_visible()
    page.get_by_role("button", name="Use the mask").press("Enter")
    mask = mask_of(house, send(page, "by keys"))
    assert mask.getpixel((146, 120)) == 255
    assert mask.getpixel((20, 20)) == 0
    page.get_by_role("button", name="Change the mask").click()
    page.get_by_role("button", name="Clear").click()
    page.get_by_role("button", name="Use the mask").click()
    expect(page.locator(".tile .masked")).to_have_count(0)
    job = send(page, "without")
    assert house.json(f"/v1/jobs/{job}")["request"]["mask"] is None


def test_every_option_is_sent(house: House, page: Page) -> None:
    """Size, seed, number, steps, guidance, what to avoid, batch; open ones are the preset's."""
    add(page, png())
    page.click("#more summary")
    page.select_option("#preset", "balanced")
    expect(page.locator("#steps")).to_have_attribute("placeholder", "8")
    page.select_option("#n", "2")
    page.select_option("#size", label="Other…")
    page.fill("#width", "128")
    page.fill("#height", "96")
    for field, value in (
        ("seed", "41"), ("steps", "3"), ("guidance", "2.5"), ("negative", "fog"), ("batch", "July"),
    ):  # fmt: skip
        page.fill(f"#{field}", value)
    shoot(page, "options")
    job = house.json(f"/v1/jobs/{send(page, 'all of it')}")
    request = job["request"]
    assert job["batch"] == "July"
    assert (request["preset"], request["n"], request["size"]) == ("balanced", 2, "128x96")
    assert (request["seed"], request["steps"], request["true_cfg_scale"]) == (41, 3, 2.5)
    assert request["negative_prompt"] == "fog"
    page.wait_for_selector(".job.done .others")
    page.get_by_role("button", name="Result 2").click()
    expect(page.locator(".compare .after")).to_have_attribute("src", re.compile("/result/2$"))


def test_change_and_run_again(house: House, page: Page) -> None:
    """A job's pictures, mask and options come back into the form, and are the same ones."""
    add(page, photo(), png(30, 30))
    page.get_by_role("button", name="Paint a mask").click()
    page.locator(".board canvas").click()
    page.get_by_role("button", name="Use the mask").click()
    page.click("#more summary")
    page.fill("#seed", "7")
    first = house.json(f"/v1/jobs/{send(page, 'at first')}")
    page.wait_for_selector(".job.done")
    page.click("#reset")
    expect(page.locator(".tile")).to_have_count(0)
    page.locator("#list .row").first.click()
    page.get_by_role("button", name="Change and run again").click()
    expect(page.locator(".tile .foot small")).to_have_text(["320×240", "30×30"])
    expect(page.locator("#prompt")).to_have_value("at first")
    expect(page.locator("#seed")).to_have_value("7")
    second = house.json(f"/v1/jobs/{send(page, 'and then')}")["request"]
    one = first["request"]
    assert [i["sha256"] for i in second["images"]] == [i["sha256"] for i in one["images"]]
    assert second["mask"]["sha256"] == one["mask"]["sha256"]
    assert (second["seed"], second["prompt"]) == (7, "and then")


def test_what_the_form_has_no_field_for_is_kept(house: House, page: Page) -> None:
    """Tier, LoRAs and file format of the job that is changed, until another preset is chosen."""
    odd = {"tier": "swift", "output": {"format": "webp", "quality": 71}, "preset": "original"}
    first = house.submit("an odd one", **odd)["request"]
    page.locator("#list .row", has_text="an odd one").click()
    page.wait_for_selector(".job.done")
    page.get_by_role("button", name="Change and run again").click()
    expect(page.locator("#kept")).to_have_text(
        "As in that job: swift, without a LoRA, WEBP. Another preset begins anew."
    )
    second = house.json(f"/v1/jobs/{send(page, 'and then')}")["request"]
    assert [second[name] for name in ("tier", "loras", "output")] == [
        first[name] for name in ("tier", "loras", "output")
    ]
    page.select_option("#preset", "balanced")
    expect(page.locator("#kept")).to_be_hidden()
    third = house.json(f"/v1/jobs/{send(page, 'at last')}")["request"]
    assert (third["tier"], third["output"]["format"]) == ("standard", "png")


def test_what_is_kept_goes_with_its_preset(house: House, page: Page) -> None:
    """Also where that one is deleted, here or by others, and another is chosen for want of it."""
    house.json("/v1/presets/mine", "PUT", {"steps": 3})
    house.submit("for a while", preset="mine", output={"format": "webp"})
    page.locator("#list .row", has_text="for a while").click()
    page.wait_for_selector(".job.done")
    expect(page.locator("#preset option", has_text="mine")).to_have_count(1)
    page.get_by_role("button", name="Change and run again").click()
    expect(page.locator("#kept")).to_be_visible()
    house.json("/v1/presets/mine", "DELETE")
    expect(page.locator("#preset")).not_to_have_value("mine")
    expect(page.locator("#kept")).to_be_hidden()
    made = house.json(f"/v1/jobs/{send(page, 'without it')}")["request"]
    assert made["output"]["format"] == "png"


def test_the_largest_seed_is_kept(house: House, page: Page) -> None:
    """To the last digit: scripts count exactly up to 2^53 only."""
    house.submit("seeded", seed=2**63 - 1, meta={"text": '"seed": 1234567890123456789'})
    page.locator("#list .row", has_text="seeded").click()
    page.wait_for_selector(".job.done")
    page.get_by_role("button", name="Change and run again").click()
    expect(page.locator("#seed")).to_have_value(str(2**63 - 1))
    assert house.json(f"/v1/jobs/{send(page, 'the same')}")["request"]["seed"] == 2**63 - 1


def test_a_size_that_the_form_does_not_offer_is_kept(house: House, page: Page) -> None:
    """As others may ask for it."""
    house.submit("half a megapixel", size="fit:0.5")
    page.locator("#list .row", has_text="half a megapixel").click()
    page.wait_for_selector(".job.done")
    page.get_by_role("button", name="Change and run again").click()
    expect(page.locator("#size option:checked")).to_have_text("0.5 megapixels at most")
    assert house.json(f"/v1/jobs/{send(page, 'once more')}")["request"]["size"] == "fit:0.5"


def test_go_on_from_a_result(house: House, page: Page) -> None:
    """The result is the next edit's picture."""
    first = send(page, "once", photo())
    page.wait_for_selector(".job.done")
    page.get_by_role("button", name="Edit further").click()
    expect(page.locator(".tile")).to_have_count(1)
    second = house.json(f"/v1/jobs/{send(page, 'and on')}")
    result = house.json(f"/v1/jobs/{first}")["results"][0]["sha256"]
    assert second["request"]["images"][0]["sha256"] == result


def test_a_preset_is_saved_used_and_deleted(house: House, page: Page) -> None:
    """For every door; those that ship cannot be deleted, nor written over."""
    add(page, png())
    page.click("#more summary")
    page.fill("#steps", "5")
    expect(page.locator("#preset-drop")).to_be_hidden()
    page.get_by_role("button", name="Save as preset").click()
    page.get_by_label("Name").fill("fastest")
    page.get_by_role("button", name="Save", exact=True).click()
    expect(page.locator("dialog .trouble")).to_contain_text("cannot be changed")
    page.get_by_label("Name").fill("five steps")
    shoot(page, "preset")
    page.get_by_role("button", name="Save", exact=True).click()
    expect(page.locator("dialog")).to_have_count(0)
    expect(page.locator("#preset")).to_have_value("five steps")
    assert house.json("/v1/presets/five%20steps")["options"]["steps"] == 5
    page.fill("#steps", "")
    request = house.json(f"/v1/jobs/{send(page, 'as saved')}")["request"]
    assert (request["preset"], request["steps"]) == ("five steps", 5)
    page.get_by_role("button", name="Delete this preset").click()
    page.locator("dialog").get_by_role("button", name="Delete", exact=True).click()
    expect(page.locator("#preset")).to_have_value("fastest")
    assert "five steps" not in [one["name"] for one in house.json("/v1/presets")["presets"]]


def test_an_answer_that_is_lost_makes_no_second_job(house: House, page: Page) -> None:
    """Pressed again after a broken connection, it is the same job."""
    before = len(house.jobs())

    def lose(route: Route) -> None:
        route.fetch()
        route.abort()

    page.route("**/v1/jobs", lose, times=1)
    add(page, png())
    page.fill("#prompt", "once only")
    page.click("#submit")
    expect(page.locator("#refused")).to_contain_text("Nothing is lost")
    page.click("#submit")
    page.wait_for_selector(".job.done")
    assert len(house.jobs()) == before + 1


def test_pictures_that_waited_too_long_are_sent_again(house: House, page: Page) -> None:
    """What the daemon keeps for an hour, the page keeps for longer."""
    add(page, png(33, 33, "red"))
    shutil.rmtree(house.folder / "data" / "spool" / "staged")
    (house.folder / "data" / "spool" / "staged").mkdir()
    page.fill("#prompt", "after lunch")
    page.click("#submit")
    page.wait_for_selector(".job.done")
    assert house.jobs()[0]["request"]["prompt"] == "after lunch"


@pytest.mark.parametrize("text", ["<img src=x onerror=alert(1)>", "'; DROP TABLE jobs; --\n\"ü☂"])
def test_a_prompt_is_only_text(house: House, page: Page, text: str) -> None:
    """Whoever wrote it."""
    house.submit(text, batch=text)
    row = page.locator("#list li").first
    expect(row.locator(".title")).to_have_text(text.replace("\n", " "))
    row.locator(".row").click()
    expect(page.locator(".job .prompt")).to_have_text(text.replace("\n", " "))
    assert page.locator("#list img[onerror], #stage img[onerror]").count() == 0
    assert json.dumps(text)
