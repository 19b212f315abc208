"""OpenAI's own client against the door: what it sends is understood, what it reads is there."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import re
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import openai
import pytest
from aiohttp import FormData
from openai import AsyncOpenAI, OpenAI
from PIL import Image, ImageChops, ImageStat

from vellumd import errors
from vellumd.daemon import Daemon
from vellumd.model_card import DEMO_FOLDER
from vellumd.settings import Settings
from vellumd_http import openai_wire
from vellumd_http.openai_wire import spread

from .conftest import PNG, Door, OpenDoor, png

T = TypeVar("T")


def client_of(url: str, **options: Any) -> OpenAI:
    # Loading the certificates takes longer than an edit, and plain HTTP needs none.
    http = openai.DefaultHttpxClient(verify=False)
    defaults = {"api_key": "none", "max_retries": 0, "http_client": http}
    return OpenAI(base_url=f"{url}/v1", **{**defaults, **options})


async def call(door: Door, work: Callable[[OpenAI], T], **options: Any) -> T:
    """What `work` gets with a client of the door, which blocks."""
    with client_of(door.url, **options) as client:
        return await asyncio.to_thread(work, client)


async def edited(door: Door, **fields: Any) -> openai.types.ImagesResponse:
    fields = {"image": ("photo.png", PNG), "prompt": "make it blue", **fields}
    return await call(door, lambda client: client.images.edit(**fields))


def picture_of(data: str | None) -> Image.Image:
    assert data is not None
    return Image.open(io.BytesIO(base64.b64decode(data)))


async def jobs_of(door: Door) -> list[Any]:
    return (await door.json("GET", "/v1/jobs"))["jobs"]


async def test_one_picture(door: Door) -> None:
    """The picture, as large as its input; which job and model made it; no tokens."""
    got = await edited(door, model="gpt-image-1", user="me", extra_body={"seed": 7})
    assert got.data and len(got.data) == 1
    assert (picture_of(got.data[0].b64_json).format, got.output_format) == ("PNG", "png")
    assert picture_of(got.data[0].b64_json).size == (48, 32)
    assert (got.size, got.background, got.quality) == ("48x32", "opaque", "low")
    assert got.usage and got.usage.total_tokens == got.usage.input_tokens_details.text_tokens == 0
    assert got.model_extra and got.model_extra["model"] == "demo"
    job = await door.json("GET", f"/v1/jobs/{got.model_extra['job_id']}")
    assert got._request_id == job["id"] and job["client_id"] == "me"
    assert job["request"]["seed"] == got.data[0].seed == 7  # type: ignore[attr-defined]
    assert [one["code"] for one in got.model_extra["warnings"]] == ["demo_model"]


async def test_several_pictures_mask_and_options(door: Door) -> None:
    """`image[]` in order, a mask, and everything that extra_body can say."""
    tones = [png(color=tone) for tone in ("red", "green", "blue")]
    mask = io.BytesIO()
    Image.new("RGBA", (48, 32), (0, 0, 0, 0)).save(mask, "PNG")
    got = await edited(
        door,
        image=[(f"{n}.png", tone) for n, tone in enumerate(tones)],
        mask=("mask.png", mask.getvalue()),
        n=2,
        size="64x48",
        output_format="webp",
        output_compression=60,
        input_fidelity="high",
        extra_body={
            "num_inference_steps": 6, "true_cfg_scale": 2.5, "negative_prompt": "dark", "seed": 3,
            "preset": "fastest", "strength": 0.5, "nested": {"a": 1},
        },
    )  # fmt: skip
    assert got.data and [one.seed for one in got.data] == [3, 4]  # type: ignore[attr-defined]
    assert {picture_of(one.b64_json).format for one in got.data} == {"WEBP"}
    assert got.model_extra
    (job,) = await jobs_of(door)
    asked = job["request"]
    assert [one["name"] for one in asked["images"]] == ["0.png", "1.png", "2.png"]
    assert asked["mask"]["name"] == "mask.png"
    assert (asked["steps"], asked["true_cfg_scale"], asked["negative_prompt"]) == (6, 2.5, "dark")
    assert (asked["preset"], asked["n"], asked["size"]) == ("fastest", 2, "64x48")
    assert (asked["output"]["format"], asked["output"]["quality"]) == ("webp", 60)
    (unknown,) = [o for o in got.model_extra["warnings"] if o["code"] == "unknown_field"]
    assert "nested[a], strength" in unknown["message"]


async def test_quality_format_background(door: Door) -> None:
    """Qualities are presets, the caller's own wins; transparency is kept where asked for."""
    runs = [
        ({"quality": "low"}, ("fastest", 8, "png", "flatten"), "low"),
        ({"quality": "medium"}, ("balanced", 8, "png", "flatten"), "medium"),
        ({"quality": "high", "size": "auto"}, ("original", 28, "png", "flatten"), "high"),
        ({"quality": "auto", "output_format": "jpeg"}, ("fastest", 8, "jpeg", "flatten"), "low"),
        ({"quality": "high", "extra_body": {"preset": "balanced"}},
         ("balanced", 8, "png", "flatten"), "medium"),
        ({"extra_body": {"num_inference_steps": 30}}, ("original", 30, "png", "flatten"), "high"),
        ({"background": "transparent"}, ("fastest", 8, "png", "reapply"), "low"),
    ]  # fmt: skip
    for fields, expected, quality in runs:
        got = await edited(door, **fields)
        asked = (await jobs_of(door))[0]["request"]
        output = asked["output"]
        assert (asked["preset"], asked["steps"], output["format"], output["alpha"]) == expected
        assert asked["size"] == "match" and got.quality == quality
    assert got.background == "transparent"


async def test_a_quality_without_its_lora(open_door: OpenDoor, tmp_path: Path) -> None:
    """On a model whose folder has no Lightning LoRA, each quality runs without one."""
    (tmp_path / "model").mkdir()
    async with open_door({"engine": {"name": "paper", "model": str(tmp_path / "model")}}) as door:
        for quality in ("low", "medium", "high"):
            await edited(door, quality=quality)
            assert (await jobs_of(door))[0]["request"]["preset"] == "original"
        listed = (await door.json("GET", "/v1/presets"))["presets"]
        assert [one["name"] for one in listed if one["usable"]] == ["original"]


async def test_a_saved_preset_with_its_prompt(door: Door) -> None:
    """The client must send a prompt; an empty one leaves the preset's."""
    await door.json("PUT", "/v1/presets/snow", 201, json={"prompt": "make it snow"})
    await edited(door, prompt="", extra_body={"preset": "snow"})
    assert (await jobs_of(door))[0]["request"]["prompt"] == "make it snow"


async def test_models(door: Door) -> None:
    """The one that runs; by its name, too; no other."""
    (model,) = (await call(door, lambda client: client.models.list())).data
    assert (model.id, model.owned_by) == ("demo", "vellumd") and model.created > 1_700_000_000
    assert await call(door, lambda client: client.models.retrieve("demo")) == model
    with pytest.raises(openai.NotFoundError) as caught:
        await call(door, lambda client: client.models.retrieve("org/gpt-image-1"))
    assert caught.value.code == "not_found" and "'demo'" in caught.value.message


async def test_urls_where_there_is_a_public_address(open_door: OpenDoor) -> None:
    """`response_format=url` gives links that open without a key; elsewhere it says why not."""
    async with open_door({"daemon": {"public_url": "http://localhost:1"}}) as door:
        got = await edited(door, response_format="url")
        assert got.data and got.data[0].url and got.data[0].b64_json is None
        async with door.ask("GET", got.data[0].url.removeprefix("http://localhost:1")) as answer:
            assert answer.content_type == "image/png"


REFUSED: list[tuple[dict[str, Any], str, str | None]] = [
    ({"response_format": "url"}, "bad_request", "response_format"),
    ({"n": 5}, "bad_request", "n"),
    ({"size": "big"}, "bad_size", "size"),
    ({"quality": "best"}, "bad_request", "quality"),
    ({"output_format": "gif"}, "bad_request", "output_format"),
    ({"output_compression": 101}, "bad_request", "output_compression"),
    ({"background": "transparent", "output_format": "jpeg"}, "bad_request", "background"),
    ({"partial_images": 4, "stream": True}, "bad_request", "partial_images"),
    ({"extra_body": {"stream": "maybe"}}, "bad_request", "stream"),
    ({"image": ("a.png", b"no picture")}, "bad_image", "image"),
    ({"image": [("a.png", PNG)] * 5}, "too_many_images", "image"),
    ({"mask": ("a.png", b"no picture")}, "bad_image", "mask"),
    ({"prompt": ""}, "bad_request", "prompt"),
    ({"extra_body": {"preset": "other"}}, "unknown_preset", "preset"),
    ({"extra_body": {"num_inference_steps": 1000}}, "bad_request", "num_inference_steps"),
]


async def test_bad_requests(door: Door) -> None:
    """400, with the field's name as the caller knows it; nothing that makes clients repeat it."""
    for fields, code, param in REFUSED:
        with pytest.raises(openai.BadRequestError) as caught:
            await edited(door, **fields)
        error = caught.value
        assert (error.code, error.param, error.type) == (code, param, "invalid_request_error")
        assert error.response.headers["x-should-retry"] == "false"
        assert error.request_id and error.request_id.startswith("req_")
    assert await jobs_of(door) == []


async def test_a_wrong_key_and_another_sites_page(open_door: OpenDoor, tmp_path: Path) -> None:
    """Refusals of the guard come in the same form."""
    (tmp_path / "key").write_text("secret\n")
    async with open_door(api_key_file=tmp_path / "key") as door:
        with pytest.raises(openai.AuthenticationError) as caught:
            await edited(door)
        assert (caught.value.code, caught.value.type) == ("unauthorized", "authentication_error")
        models = await call(door, lambda client: client.models.list(), api_key="secret")
        assert models.data[0].id == "demo"
        with pytest.raises(openai.PermissionDeniedError) as denied:
            await edited(door, extra_headers={"Origin": "http://evil.example"})
        assert denied.value.code == "forbidden_origin"
        unknown = await door.json("POST", "/v1/images/variations", 401)
        assert unknown["error"]["code"] == "unauthorized"


async def test_failures(door: Door) -> None:
    """500 for what broke, 400 for a cancelled job, and never anything that is repeated in vain."""
    with pytest.raises(openai.InternalServerError) as caught:
        await edited(door, prompt="fail")
    assert (caught.value.type, caught.value.code) == ("server_error", "internal")
    assert caught.value.response.headers["x-should-retry"] == "false"
    assert caught.value.request_id == (await jobs_of(door))[0]["id"]
    assert "passwd" not in caught.value.message
    await door.json("POST", "/v1/queue/pause")
    async with asyncio.TaskGroup() as tasks:
        asking = tasks.create_task(refusal(door))
        job = await job_besides(door, 1)
        await door.json("POST", f"/v1/jobs/{job}/cancel")
    error = asking.result()
    assert isinstance(error, openai.BadRequestError) and error.code == "cancelled"


async def refusal(door: Door, **fields: Any) -> openai.APIError:
    with pytest.raises(openai.APIError) as caught:
        await edited(door, **fields)
    return caught.value


async def job_besides(door: Door, known: int) -> str:
    """The newest job, once there are more than `known`."""
    async with asyncio.timeout(20):
        while len(jobs := await jobs_of(door)) <= known:
            await asyncio.sleep(0.01)
    return str(jobs[0]["id"])


async def test_a_full_queue(open_door: OpenDoor) -> None:
    """429 with Retry-After, which clients obey: RateLimitError only when they give up."""
    async with open_door({"limits": {"queue": 1}}) as door:
        await door.json("POST", "/v1/queue/pause")
        first = await door.json("POST", "/v1/jobs", 202, json={"images": [b64(PNG)], "prompt": "x"})
        error = await refusal(door)
        assert isinstance(error, openai.RateLimitError) and error.type == "rate_limit_error"
        assert error.code == "queue_full" and int(error.response.headers["Retry-After"]) >= 1
        assert "x-should-retry" not in error.response.headers
        assert [job["id"] for job in await jobs_of(door)] == [first["id"]]


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


# repetitions


@asynccontextmanager
async def cutting(port: int, cuts: int, ready: Callable[[], Any]) -> AsyncIterator[int]:
    """A port that leads to `port`, but ends its first `cuts` connections once `ready` returns."""
    made = 0

    async def pass_on(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        while data := await source.read(65536):
            target.write(data)
            await target.drain()
        target.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal made
        made += 1
        doomed = made <= cuts
        inner, outer = await asyncio.open_connection("127.0.0.1", port)
        try:
            async with asyncio.TaskGroup() as tasks:
                ways = [
                    tasks.create_task(pass_on(reader, outer)),
                    tasks.create_task(pass_on(inner, writer)),
                ]
                if doomed:
                    await ready()
                    for way in ways:
                        way.cancel()
        except* ConnectionError:
            pass
        finally:
            for one in (writer, outer):
                one.transport.abort()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1]


async def test_a_broken_connection_is_one_job(open_door: OpenDoor) -> None:
    """The client sends it again by itself, twice; it gets the first one's picture."""
    async with open_door(engine={"step_s": 0.05}) as door:

        async def accepted() -> None:
            await job_besides(door, 0)

        async with cutting(door.port, 2, accepted) as port:
            with client_of(f"http://127.0.0.1:{port}", max_retries=2) as client:
                edit = client.images.edit
                got = await asyncio.to_thread(edit, image=("a.png", PNG), prompt="x", n=2)
        (job,) = await jobs_of(door)
        assert got.model_extra and got.model_extra["job_id"] == job["id"]
        assert got.data and len(got.data) == 2


async def test_a_clients_time_out_is_one_job(open_door: OpenDoor) -> None:
    """It gave up waiting and asks again: the same job, until it is done."""
    async with open_door(engine={"step_s": 0.1}) as door:
        await edited(door, prompt="warm up", extra_body={"num_inference_steps": 1})
        got = await call(
            door,
            lambda client: client.images.edit(image=("a.png", PNG), prompt="x", timeout=0.4),
            max_retries=8,
        )
        assert got.model_extra and len(await jobs_of(door)) == 2


async def test_equal_calls_at_once_are_several_jobs(open_door: OpenDoor) -> None:
    """Who asks four times for a picture wants four; a key makes two calls one job."""
    async with (
        open_door(engine={"step_s": 0.01}) as door,
        AsyncOpenAI(base_url=f"{door.url}/v1", api_key="x", max_retries=0) as client,
    ):
        photo = ("a.png", PNG)
        async with asyncio.TaskGroup() as tasks:
            edits = [
                tasks.create_task(client.images.edit(image=photo, prompt="x")) for _ in range(4)
            ]
        made = {edit.result()._request_id for edit in edits}
        assert len(made) == 4
        key = {"Idempotency-Key": "mine"}
        for _ in range(2):
            got = await client.images.edit(image=photo, prompt="y", extra_headers=key)
            made.add(got._request_id)
        assert len(made) == 5
        with pytest.raises(openai.UnprocessableEntityError) as caught:
            await client.images.edit(image=photo, prompt="z", extra_headers=key)
        assert caught.value.code == "idempotency_mismatch"


# streams


def test_partial_pictures_are_spread_evenly() -> None:
    """So many as asked for if there are more steps, never the last step, never one twice."""
    assert spread(12, 3) == [3, 6, 9]
    assert spread(8, 1) == [4]
    assert spread(3, 3) == [1, 2] and spread(1, 3) == [] and spread(8, 0) == []
    for steps in range(1, 101):
        for count in range(4):
            picked = spread(steps, count)
            assert len(picked) == (count if steps > count else steps - 1)
            assert picked == sorted(set(picked)) and all(0 < step < steps for step in picked)


async def test_a_stream_without_partial_pictures(door: Door) -> None:
    """One completed event a result, with all that the client's type needs."""

    def work(client: OpenAI) -> list[Any]:
        photo = ("a.png", PNG)
        stream = client.images.edit(image=photo, prompt="x", n=2, stream=True)
        return list(stream)

    first, second = await call(door, work)
    assert {first.type, second.type} == {"image_edit.completed"}
    assert picture_of(first.b64_json).size == (48, 32) and first.size == "48x32"
    assert (first.quality, first.background, first.output_format) == ("low", "opaque", "png")
    assert first.usage.total_tokens == 0 and first.created_at > 1_700_000_000
    assert (first.seed + 1, first.job_id) == (second.seed, second.job_id)


async def test_a_stream_in_a_form(door: Door) -> None:
    """Forms hold texts: whatever people write for yes is one, and for no none."""
    for said, kind in [("yes", "text/event-stream"), ("No", "application/json")]:
        form = FormData({"prompt": "make it blue", "stream": said})
        form.add_field("image", PNG, filename="a.png")
        async with door.ask("POST", "/v1/images/edits", data=form) as got:
            assert (got.status, got.content_type) == (200, kind)
            assert (b"image_edit.completed" in await got.read()) == (said == "yes")


async def test_errors_in_a_stream(door: Door) -> None:
    """A bad request is refused as ever; a job that fails ends its stream with an APIError."""
    for fields, kind, code in (
        ({"size": "x"}, openai.BadRequestError, "bad_size"),
        ({"prompt": "fail"}, openai.APIError, "internal"),
    ):

        def work(client: OpenAI, fields: dict[str, Any] = fields) -> list[Any]:
            asked: dict[str, Any] = {"image": ("a.png", PNG), "prompt": "x", **fields}
            return list(client.images.edit(stream=True, **asked))

        with pytest.raises(kind) as caught:
            await call(door, work)
        assert caught.value.code == code and caught.value.type is not None


async def test_partial_pictures_of_a_running_edit(tmp_path: Path) -> None:
    """The demo model's own steps: pictures in the wanted format that come nearer to the result."""
    settings = Settings.model_validate(
        {"store": {"dir": tmp_path}, "plugins": {"http": {"port": 0}}}
    )
    photo = DEMO_FOLDER / "samples" / "shapes.png"
    async with Daemon(settings).running() as daemon:

        def work(steps: int, partials: int) -> list[Any]:
            asked: dict[str, Any] = {"num_inference_steps": steps, "preset": "original", "seed": 5}
            with client_of(daemon.urls[0]) as client, photo.open("rb") as image:
                events = client.images.edit(
                    image=image, prompt="make the circle blue", output_format="jpeg",
                    stream=True, partial_images=partials, extra_body=asked,
                )  # fmt: skip
                return list(events)

        *partial, last = await asyncio.to_thread(work, 8, 3)
        assert [one.partial_image_index for one in partial] == [0, 1, 2]
        assert {one.type for one in partial} == {"image_edit.partial_image"}
        assert last.type == "image_edit.completed"
        seen = [picture_of(one.b64_json) for one in partial]
        assert {one.format for one in seen} == {"JPEG"}
        result = picture_of(last.b64_json)
        away = [distance(one, result) for one in seen]
        assert away == sorted(away, reverse=True) and away[-1] < away[0] * 0.6, away
        assert [one.type for one in await asyncio.to_thread(work, 2, 3)] == [
            "image_edit.partial_image", "image_edit.completed",
        ]  # fmt: skip


def distance(one: Image.Image, other: Image.Image) -> float:
    """Mean difference of two pictures' channels, once they are equally large."""
    both = one.convert("RGB").resize(other.size), other.convert("RGB")
    return float(sum(ImageStat.Stat(ImageChops.difference(*both)).mean))


# the guide

GUIDE = (Path(__file__).parents[3] / "docs" / "openai.md").read_text("utf-8")


async def test_the_guides_samples_run_as_written(
    door: Door, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each block of docs/openai.md, with the two variables it names and this door's address."""
    at = door.url.removeprefix("http://")
    shell = [block.replace("127.0.0.1:8200", at) for block in blocks("sh")]
    for name, value in re.findall(r"export (\w+)=(\S+)", shell.pop(0)):
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (48, 32), "teal").save("photo.jpg")
    for sample in blocks("python"):
        await asyncio.to_thread(exec, compile(sample, "docs/openai.md", "exec"), {})
    for made in ("winter.png", "final.png"):
        with Image.open(made) as picture:
            assert picture.size == (48, 32)
    assert (await jobs_of(door))[0]["request"]["seed"] == 42
    curl = await asyncio.create_subprocess_shell(shell.pop(), stdout=PIPE, stderr=PIPE)
    answer, _ = await curl.communicate()
    assert picture_of(json.loads(answer)["data"][0]["b64_json"]).size == (48, 32)
    assert not shell


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", GUIDE, re.MULTILINE | re.DOTALL)


def test_the_guide_knows_every_field_and_quality() -> None:
    """The table of docs/openai.md is what the door understands."""
    for name in openai_wire.OWN - {"stream", "partial_images"}:
        assert f"`{name}`" in GUIDE
    for quality, told in (("low", "fastest"), ("medium", "balanced"), ("high", "original")):
        assert openai_wire.QUALITIES[quality][0] == told and f"`{quality}`: " in GUIDE


@pytest.mark.parametrize("value", [[], {}, {"a": 1}, [1], True, -1, 1e9, "\u2603", None])
def test_values_of_any_type(value: Any) -> None:
    """JSON bodies can hold anything: each field takes it or refuses it with a code."""
    picture = {"sha256": "a" * 64, "width": 8, "height": 8}
    for name in openai_wire.FIELDS - {"image", "images", "image[]", "images[]"}:
        fields = {"images": [picture], "prompt": "x", name: value}
        with suppress(errors.BadRequest, errors.BadSize, errors.UnknownTier):
            openai_wire.asked(fields, ["balanced"])
