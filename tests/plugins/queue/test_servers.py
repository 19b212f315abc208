"""Three old servers that differ in everything, each by its mapping."""

from __future__ import annotations

import base64
import email
import io
import itertools
import json
from typing import Any

from PIL import Image

from tests.plugins.queue.conftest import OpenDoor, b64, job, png, until
from tests.plugins.queue.old_server import EMPTY, OK, Answer, Call, OldServer
from vellumd import JobFilter


def shows(picture: bytes, color: tuple[int, int, int]) -> bool:
    """Whether a result is the inverted picture of this colour."""
    with Image.open(io.BytesIO(picture)) as image:
        return image.convert("RGB").getpixel((5, 5)) == color


async def test_the_usual_server(old: OldServer, open_door: OpenDoor) -> None:
    """Ids are numbers, a picture is one base64, results are JSON with Content-Length."""
    old.offer(job(41, image=b64(png("red")), seed=7, num_steps=2))
    async with open_door(url=old.url, worker="w 1", token="secret"):
        await until(old.results)
    posted = old.results()[0]
    answer = posted.json
    assert set(answer) == {"id", "status", "image", "seed", "elapsed"}
    assert (answer["id"], answer["status"], answer["seed"]) == (41, "done", 7)
    assert shows(base64.b64decode(answer["image"]), (0, 255, 255))
    assert posted.headers["Content-Length"] == str(len(posted.body))
    assert posted.headers["Content-Type"] == "application/json"
    assert all(call.headers["Authorization"] == "Bearer secret" for call in old.calls)
    assert old.calls[0].query == "worker=w+1"


async def test_a_server_of_lists_and_forms(old: OldServer, open_door: OpenDoor) -> None:
    """Ids are texts in the path, pictures a list under another name, results a form."""

    def claim(call: Call) -> Answer:
        jobs: list[Any] = [old.jobs.popleft()] if old.jobs else []
        return 200, {}, json.dumps({"data": {"tasks": jobs}}).encode()

    old.rules["POST /v2/claim"] = claim
    pictures = [f"data:image/png;base64,{b64(png('black'))}", b64(png("red"))]
    old.offer({"uuid": "a/b", "params": {"pics": pictures, "text": "blend"}, "k": 2})
    names = {
        "next": "POST /v2/claim",
        "result": "PUT /v2/tasks/{id}/output",
        "job": "data.tasks.0",
        "fields": {"id": "uuid", "images": "params.pics", "prompt": "params.text", "n": "k"},
        "answer": {"id": "", "image": "file", "images": "files[]", "done": "COMPLETED"},
    }
    async with open_door(url=old.url, map=names, result="multipart"):
        await until(lambda: old.results("/v2/tasks/a%2Fb/output"))
    posted = old.results("/v2/tasks/a%2Fb/output")[0]
    head = f"Content-Type: {posted.headers['Content-Type']}\r\n\r\n".encode()
    parts = email.message_from_bytes(head + posted.body).get_payload()
    named = [part.get_param("name", header="content-disposition") for part in parts]
    assert named == ["status", "file", "files[]", "files[]", "seed", "elapsed"]
    assert parts[0].get_payload() == "COMPLETED"
    assert shows(parts[1].get_payload(decode=True), (255, 255, 255))


async def test_a_server_of_urls(old: OldServer, open_door: OpenDoor) -> None:
    """Pictures are URLs on the server, whole and relative; the queue wraps and renames."""
    old.rules["GET /files/1.png"] = lambda call: (200, {}, png("red"))
    old.rules["GET /q"] = lambda call: (
        (200, {}, json.dumps({"job": old.jobs.popleft()}).encode())
        if old.jobs
        else (200, {}, b'{"job": null}')
    )
    old.rules["POST /done"] = lambda call: OK
    old.offer({"job_id": "x", "images": [f"{old.url}/files/1.png", "/files/1.png"], "prompt": "p"})
    names = {
        "next": "GET /q",
        "result": "POST /done",
        "job": "job",
        "answer": {"id": "job_id", "image": "result.data", "elapsed": ""},
    }
    async with open_door(url=old.url, map=names, token="t"):
        await until(lambda: old.results("/done"))
    answer = old.results("/done")[0].json
    assert answer["job_id"] == "x"
    assert set(answer) == {"job_id", "status", "result", "seed"}
    assert shows(base64.b64decode(answer["result"]["data"]), (0, 255, 255))
    assert len(old.results("/files/1.png")) == 2


async def test_several_servers(open_door: OpenDoor) -> None:
    """One daemon works for all; the same id on two servers is two jobs, each answered once."""
    both = [OldServer(), OldServer()]
    try:
        for server in both:
            for id in (1, "1"):
                server.offer(job(id))
        servers = {f"s{n}": {"url": server.url} for n, server in enumerate(both)}
        async with open_door(servers=servers) as daemon:
            await until(lambda: all(len(server.results()) == 2 for server in both))
            assert len((await daemon.jobs.list(JobFilter(), None)).jobs) == 4
        for server in both:
            assert [call.json["id"] for call in server.results()] == [1, "1"]
    finally:
        for server in both:
            server.close()


async def test_a_failed_job_is_told(old: OldServer, open_door: OpenDoor) -> None:
    """An edit that fails and a job that cannot be one are told by id and code."""
    old.offer(job("broken", prompt="fail"))
    old.offer(job("no picture", image="QUJD"))
    old.offer(job("no prompt", prompt=None))
    old.offer(job("elsewhere", image="http://169.254.169.254/latest"))
    async with open_door(url=old.url):
        await until(lambda: len(old.results()) == 4)
    told = {call.json["id"]: call.json for call in old.results()}
    codes = {id: answer["code"] for id, answer in told.items()}
    assert codes.pop("no picture") in ("bad_image", "unsupported_format")
    assert codes == {
        "broken": "internal", "no prompt": "bad_request", "elsewhere": "bad_request",
    }  # fmt: skip
    assert all(answer["status"] == "failed" and answer["error"] for answer in told.values())
    assert "passwd" not in str(told)


async def test_an_empty_queue_is_no_trouble(old: OldServer, open_door: OpenDoor) -> None:
    """However it is said."""
    said = itertools.cycle([EMPTY, (404, {}, b"nothing"), (200, {}, b"null"), (200, {}, b"")])
    old.rules["GET /api/queue/next"] = lambda call: next(said)
    async with open_door(url=old.url) as daemon:
        await until(lambda: len(old.calls) == 8)
        assert daemon.info()["transports"]["queue"]["ok"]
