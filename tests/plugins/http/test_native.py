"""The native door over real sockets: jobs as resources."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import io
import json
import uuid

import pytest
from aiohttp import FormData
from PIL import Image
from yarl import URL

from .conftest import EDIT, PNG, Door, OpenDoor, b64, png


async def test_a_job_from_submit_to_result(door: Door) -> None:
    """202 with a place to look, then the finished job, then its picture."""
    async with door.ask("POST", "/v1/jobs", json=EDIT) as got:
        assert got.status == 202
        job = await got.json()
        assert got.headers["Location"] == f"/v1/jobs/{job['id']}"
    assert (job["source"], job["request"]["prompt"]) == ("http", "make it blue")
    done = await door.json("GET", f"/v1/jobs/{job['id']}", headers={"Prefer": "wait=30"})
    assert (done["status"], done["error"]) == ("done", None)
    result = done["results"][0]
    async with door.ask("GET", f"/v1/jobs/{job['id']}/result") as got:
        data = await got.read()
        assert got.content_type == "image/png"
        assert hashlib.sha256(data).hexdigest() == result["sha256"]
        assert got.headers["ETag"] == f'"{result["sha256"]}"'
    assert Image.open(io.BytesIO(data)).size == (result["width"], result["height"])


async def test_form_and_json_are_the_same_edit(door: Door) -> None:
    """Under one idempotency key both doors' spellings are equal."""
    form = FormData(quote_fields=False)
    form.add_field("prompt", EDIT["prompt"])
    form.add_field("images", PNG, filename="../photo.png", content_type="image/png")
    form.add_field("seed", "7")
    key = {"Idempotency-Key": "one"}
    first = await door.json("POST", "/v1/jobs", 202, data=form, headers=key)
    assert first["request"]["images"][0]["name"] == "photo.png"
    again = await door.json("GET", f"/v1/jobs/{first['id']}", headers={"Prefer": "wait=30"})
    assert again["status"] == "done"
    assert (await door.json("POST", "/v1/jobs", json=EDIT, headers=key))["id"] == first["id"]


async def test_several_pictures_are_one_edit(door: Door) -> None:
    """In order, as list of base64, data URI and hash, or as repeated form fields."""
    pictures = [png(color=color) for color in ("red", "green", "blue")]
    hashes = [hashlib.sha256(picture).hexdigest() for picture in pictures]
    kept = await door.json("POST", "/v1/inputs", 201, data=pictures[2])
    assert kept == {"sha256": hashes[2], "width": 48, "height": 32}
    images = [b64(pictures[0]), f"data:image/png;base64,{b64(pictures[1])}", f"sha256:{hashes[2]}"]
    job = await door.json("POST", "/v1/jobs", 202, json={"images": images, "prompt": "x"})
    assert [picture["sha256"] for picture in job["request"]["images"]] == hashes
    form = FormData()
    form.add_field("image[]", pictures[0], filename="a.png")
    form.add_field("image[]", pictures[1], filename="b.png")
    form.add_field("image[]", f"sha256:{hashes[2]}")
    form.add_field("prompt", "x")
    job = await door.json("POST", "/v1/jobs", 202, data=form)
    assert [picture["sha256"] for picture in job["request"]["images"]] == hashes


async def test_prefer_wait_brings_the_finished_job(door: Door) -> None:
    """200 instead of 202, and the preference is said to be applied."""
    async with door.ask("POST", "/v1/jobs", json=EDIT, headers={"Prefer": "wait=999"}) as got:
        assert (got.status, got.headers["Preference-Applied"]) == (200, "wait=300")
        assert (await got.json())["status"] == "done"


async def test_a_wait_that_ends_first_brings_the_job_as_it_is(open_door: OpenDoor) -> None:
    """Still 202, whatever was accepted; the job goes on."""
    async with open_door(engine={"step_s": 0.2}) as door:
        headers = {"Prefer": "wait=0", "Accept": "image/png"}
        async with door.ask("POST", "/v1/jobs", json=EDIT, headers=headers) as got:
            assert (got.status, got.headers["Preference-Applied"]) == (202, "wait=0")
            job = await got.json()
        async with door.ask("GET", f"/v1/jobs/{job['id']}/result") as got:
            assert (got.status, (await got.json())["code"]) == (409, "not_done")


async def test_accept_brings_the_bytes(door: Door) -> None:
    """With a wait and an image type, the answer is the picture."""
    headers = {"Prefer": "wait=30", "Accept": "image/png"}
    async with door.ask("POST", "/v1/jobs", json=EDIT, headers=headers) as got:
        assert (got.status, got.content_type) == (200, "image/png")
        assert got.headers["Preference-Applied"] == "wait=30"
        assert Image.open(io.BytesIO(await got.read())).getpixel((5, 5)) == (255, 127, 127)


async def test_a_key_names_one_request(door: Door) -> None:
    """Equal requests give the one job, twenty at once too; another is a mismatch."""
    key = {"Idempotency-Key": "k-1"}
    async with asyncio.TaskGroup() as tasks:
        asked = [tasks.create_task(door.done(**key)) for _ in range(20)]
    assert len({task.result()["id"] for task in asked}) == 1
    problem = await door.json("POST", "/v1/jobs", 422, json={**EDIT, "seed": 8}, headers=key)
    assert problem["code"] == "idempotency_mismatch"
    assert len((await door.json("GET", "/v1/jobs"))["jobs"]) == 1


async def test_jobs_are_listed_by_page_and_filter(door: Door) -> None:
    """Newest first, each once, whatever the filter."""
    for number in range(55):
        edit = {**EDIT, "batch": f"b{number % 2}", "client_id": "me", "seed": number}
        await door.json("POST", "/v1/jobs", 202, json=edit)
    first = await door.json("GET", "/v1/jobs?client_id=me&source=http")
    second = await door.json("GET", f"/v1/jobs?client_id=me&source=http&cursor={first['next']}")
    seeds = [job["request"]["seed"] for job in (*first["jobs"], *second["jobs"])]
    assert seeds == list(range(54, -1, -1))
    assert second["next"] is None
    assert len((await door.json("GET", "/v1/jobs?batch=b1"))["jobs"]) == 27
    assert (await door.json("GET", "/v1/jobs?status=failed"))["jobs"] == []


@pytest.mark.parametrize("query", ["status=lost", "cursor=x", "limit=5", "stat%00us=1"])
async def test_a_wrong_query_is_named(door: Door, query: str) -> None:
    """Unknown parameters and values are errors."""
    problem = await door.json("GET", f"/v1/jobs?{query}", 400)
    assert problem["code"] == "bad_request"


async def test_the_life_of_waiting_jobs(open_door: OpenDoor) -> None:
    """Priority, cancel, delete and retry do what they say, and say it again."""
    async with open_door(engine={"step_s": 0.1}) as door:
        await door.json("POST", "/v1/jobs", 202, json=EDIT)
        job = await door.json("POST", "/v1/jobs", 202, json={**EDIT, "prompt": "second"})
        path = f"/v1/jobs/{job['id']}"
        moved = await door.json("PATCH", path, json={"priority": 5})
        assert moved["request"]["priority"] == 5
        for wrong in ({"priority": 500}, {"priority": "high"}, {}, {"priority": 1, "seed": 2}):
            assert (await door.json("PATCH", path, 400, json=wrong))["code"] == "bad_request"
        assert (await door.json("DELETE", path, 409))["code"] == "not_done"
        for _ in range(2):
            assert (await door.json("POST", f"{path}/cancel"))["status"] == "cancelled"
        assert (await door.json("GET", f"{path}/result", 409))["code"] == "cancelled"
        async with door.ask("POST", f"{path}/retry") as got:
            assert got.status == 202
            again = await got.json()
            assert got.headers["Location"] == f"/v1/jobs/{again['id']}"
        assert (again["retry_of"], again["request"]["prompt"]) == (job["id"], "second")
        async with door.ask("DELETE", path) as got:
            assert (got.status, await got.read()) == (204, b"")
        assert (await door.json("GET", path, 404))["code"] == "not_found"


async def test_a_failed_job_tells_its_error(door: Door) -> None:
    """The job holds the error; its result answers with the error's status."""
    job = await door.done({**EDIT, "prompt": "fail"})
    assert job["status"] == "failed"
    problem = await door.json("GET", f"/v1/jobs/{job['id']}/result", 500)
    assert problem["code"] == job["error"]["code"]
    assert "passwd" not in json.dumps([job, problem])
    headers = {"Prefer": "wait=30", "Accept": "image/png"}
    edit = {**EDIT, "prompt": "fail again"}
    assert (await door.json("POST", "/v1/jobs", 500, json=edit, headers=headers))["code"]


async def test_results_are_cached_and_cut(door: Door) -> None:
    """A known hash is 304; one range is served; others are ignored, as RFC 9110 allows."""
    job = await door.done()
    path = f"/v1/jobs/{job['id']}/result/1"
    tag = f'"{job["results"][0]["sha256"]}"'
    async with door.ask("GET", path) as got:
        whole = await got.read()
    for known in (tag, f'"other", {tag}', f"W/{tag}", "*"):
        async with door.ask("GET", path, headers={"If-None-Match": known}) as got:
            assert (got.status, got.headers["ETag"], await got.read()) == (304, tag, b"")
    for wanted, part in (("0-9", whole[:10]), ("10-", whole[10:]), ("-5", whole[-5:])):
        headers = {"Range": f"bytes={wanted}", "If-Range": tag}
        async with door.ask("GET", path, headers=headers) as got:
            assert (got.status, await got.read()) == (206, part)
            assert got.headers["Content-Range"].endswith(f"/{len(whole)}")
    for headers in (
        {"Range": "bytes=9-1"}, {"Range": f"bytes={len(whole)}-"}, {"Range": "bytes=0-1,3-4"},
        {"Range": "pages=1"}, {"Range": "bytes=0-9", "If-Range": '"other"'},
    ):  # fmt: skip
        async with door.ask("GET", path, headers=headers) as got:
            assert (got.status, await got.read()) == (200, whole)
    for n, code in ((0, 404), (2, 404), (9999, 404)):
        await door.json("GET", f"/v1/jobs/{job['id']}/result/{n}", code)


async def test_pictures_are_harmless_in_a_browser(door: Door) -> None:
    """No sniffing, no script, saved rather than shown, by a name of ours."""
    job = await door.done()
    for path in ("result", "inputs/1"):
        async with door.ask("GET", f"/v1/jobs/{job['id']}/{path}") as got:
            assert got.headers["X-Content-Type-Options"] == "nosniff"
            assert "sandbox" in got.headers["Content-Security-Policy"]
            assert got.headers["Content-Disposition"].startswith("attachment; filename=")
            assert job["id"] in got.headers["Content-Disposition"]
    async with door.ask("GET", f"/v1/jobs/{job['id']}/inputs/1") as got:
        assert await got.read() == PNG
    await door.json("GET", f"/v1/jobs/{job['id']}/inputs/2", 404)


async def test_a_result_is_waited_for(open_door: OpenDoor) -> None:
    """As long as `Prefer` says: then the picture, or 504, which clients ask again after."""
    async with open_door(engine={"step_s": 0.01}) as door:
        await door.json("POST", "/v1/queue/pause")
        job = await door.json("POST", "/v1/jobs", 202, json=EDIT)
        path = f"/v1/jobs/{job['id']}/result"
        assert (await door.json("GET", path, 409))["code"] == "not_done"
        async with door.ask("GET", path, headers={"Prefer": "wait=0"}) as got:
            assert (got.status, got.headers["Retry-After"]) == (504, "1")
            assert (await got.json())["code"] == "timeout"
        await door.json("POST", "/v1/queue/resume")
        async with door.ask("GET", path, headers={"Prefer": "wait=30"}) as got:
            assert (got.status, got.content_type) == (200, "image/png")
            assert got.headers["Preference-Applied"] == "wait=30"


async def test_head_tells_of_a_picture_what_get_would(door: Door) -> None:
    """As link previews and download managers ask first; the connection goes on after it."""
    job = await door.done()
    for path in ("result", "result/1?format=jpeg", "inputs/1"):
        url = f"/v1/jobs/{job['id']}/{path}"
        async with door.ask("GET", url) as got:
            body, wanted = await got.read(), got.headers
        async with door.ask("HEAD", url, headers={"Range": "bytes=0-9"}) as got:
            assert (got.status, await got.read()) == (200, b"")
            assert int(got.headers["Content-Length"]) == len(body)
            for name in ("Content-Type", "ETag"):
                assert got.headers[name] == wanted[name]
    async with door.ask("HEAD", "/v1/events") as got:
        assert got.status == 405


async def test_results_are_re_encoded_on_the_way_out(door: Door) -> None:
    """In another format and within a size, the same bytes each time, with its own tag."""
    noise = Image.effect_noise((256, 256), 80).convert("RGB")
    file = io.BytesIO()
    noise.save(file, "PNG")
    job = await door.done({**EDIT, "images": [b64(file.getvalue())]})
    path = f"/v1/jobs/{job['id']}/result"
    seen = set()
    for _ in range(2):
        async with door.ask("GET", f"{path}?format=jpeg&max_bytes=12000") as got:
            data = await got.read()
            assert (got.status, got.content_type) == (200, "image/jpeg")
            assert len(data) <= 12000
            seen.add((got.headers["ETag"], data))
    assert len(seen) == 1
    tag = seen.pop()[0]
    async with door.ask(
        "GET", f"{path}?format=jpeg&max_bytes=12000", headers={"If-None-Match": tag}
    ) as got:
        assert got.status == 304
    async with door.ask("GET", f"{path}?format=webp") as got:
        assert Image.open(io.BytesIO(await got.read())).format == "WEBP"
    for wrong in ("format=gif", "max_bytes=0", "max_bytes=-5", "max_bytes=x", "quality=5"):
        assert (await door.json("GET", f"{path}?{wrong}", 400))["code"] == "bad_request"


async def test_capabilities_name_no_address(door: Door) -> None:
    """Presets, limits and state; nothing that could be a URL without public_url."""
    shown = await door.json("GET", "/v1/capabilities")
    assert {"fastest", "balanced", "original"} <= shown["presets"].keys()
    assert shown["limits"]["max_images"] == 4
    assert shown["limits"]["json_bytes"] == 32 << 20
    job = await door.done()
    assert "http://" not in json.dumps([shown, job])


async def test_samples_are_those_of_the_card(door: Door) -> None:
    """Each that capabilities name is there, and nothing else of the model's folder."""
    samples = (await door.json("GET", "/v1/capabilities"))["samples"]
    assert samples
    for name in {name for sample in samples for name in sample["images"]}:
        async with door.ask("GET", f"/v1/samples/{name}") as got:
            assert (got.status, got.content_type) == (200, "image/png")
            Image.open(io.BytesIO(await got.read())).verify()
    for name in ("vellumd.json", "..%2fvellumd.json", "samples%2fshapes.png", "shapes"):
        assert (await door.json("GET", f"/v1/samples/{name}", 404))["code"] == "not_found"


async def test_a_mask_comes_back_as_it_went(door: Door) -> None:
    """Byte by byte; a job without one has none."""
    mask = png(color="white")
    job = await door.done({**EDIT, "mask": b64(mask)})
    async with door.ask("GET", f"/v1/jobs/{job['id']}/mask") as got:
        assert (got.status, await got.read()) == (200, mask)
        assert got.headers["Content-Disposition"].startswith("attachment")
    plain = await door.done()
    told = await door.json("GET", f"/v1/jobs/{plain['id']}/mask", 404)
    assert told["code"] == "not_found"


async def test_results_as_small_pictures(door: Door) -> None:
    """`max_side` bounds both sides, keeps the shape, enlarges nothing and is cached by its own."""
    job = await door.done({**EDIT, "images": [b64(png(600, 300))]})
    tags = set()
    for side, size in ((64, (64, 32)), (4000, (600, 300))):
        path = f"/v1/jobs/{job['id']}/result/1?format=webp&max_side={side}"
        async with door.ask("GET", path) as got:
            assert got.content_type == "image/webp"
            tags.add(tag := got.headers["ETag"])
            assert Image.open(io.BytesIO(await got.read())).size == size
        async with door.ask("GET", path, headers={"If-None-Match": tag}) as got:
            assert got.status == 304
    assert len(tags) == 2
    for wrong in ("0", "15", "x", "-1"):
        await door.json("GET", f"/v1/jobs/{job['id']}/result?max_side={wrong}", 400)


async def test_unknown_ids_are_never_done(door: Door) -> None:
    """Invariant I9, on every route with an id."""
    unknown = str(uuid.uuid4())
    for method, rest in (
        ("GET", ""), ("DELETE", ""), ("POST", "/cancel"), ("POST", "/retry"), ("GET", "/result"),
        ("GET", "/result/1"), ("GET", "/inputs/1"), ("GET", "/mask"), ("GET", "/events"),
    ):  # fmt: skip
        for name in (unknown, "1", "..", "%2e%2e%2fjobs.sqlite", "%00", "x" * 5000):
            async with door.ask(method, f"/v1/jobs/{name}{rest}") as got:
                if name == "..":
                    continue
                assert (got.status, (await got.json())["code"]) == (404, "not_found"), name
    await door.json("PATCH", f"/v1/jobs/{unknown}", 404, json={"priority": 1})


async def test_base64_and_bytes_are_the_same_result(door: Door) -> None:
    """Both doors show one job's picture."""
    legacy = await door.json("POST", "/generate", json=EDIT)
    async with door.ask("GET", f"/v1/jobs/{legacy['job_id']}/result") as got:
        assert await got.read() == base64.b64decode(legacy["image"])


async def test_a_form_costs_no_line_in_the_log(
    door: Door, caplog: pytest.LogCaptureFixture
) -> None:
    """Well-formed uploads are read without a warning of the HTTP library."""
    for _ in range(3):
        form = FormData({"prompt": "x"})
        form.add_field("images", PNG, filename="a.png")
        await door.json("POST", "/v1/jobs", 202, data=form)
    assert [record for record in caplog.records if record.levelname == "WARNING"] == []


@pytest.mark.parametrize("key", [b"\xff\xfe", "schl\u00fcssel".encode(), b"k" * 256])
async def test_a_key_that_is_none(door: Door, key: bytes) -> None:
    """An Idempotency-Key that is not short ASCII is refused before anything is stored."""
    body = json.dumps(EDIT).encode()
    head = b"POST /v1/jobs HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
    head += b"Idempotency-Key: %b\r\nContent-Length: %d\r\n\r\n" % (key, len(body))
    reader, writer = await asyncio.open_connection("127.0.0.1", URL(door.url).port)
    writer.write(head + body)
    answer = await reader.read()
    writer.close()
    assert answer.startswith(b"HTTP/1.1 400 ") and b'"bad_request"' in answer
    assert (await door.json("GET", "/v1/jobs"))["jobs"] == []


async def test_a_failed_jobs_error_is_told_once(door: Door) -> None:
    """The job, its events and its result say the same sentence."""
    job = await door.done({**EDIT, "prompt": "fail"})
    problem = await door.json("GET", f"/v1/jobs/{job['id']}/result", 500)
    assert problem["detail"] == job["error"]["message"]
    assert (await door.json("POST", "/generate", 500, json={**EDIT, "prompt": "fail"})) == {
        "detail": job["error"]["message"], "code": job["error"]["code"],
    }  # fmt: skip
