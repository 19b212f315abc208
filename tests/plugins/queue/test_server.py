"""The reference server: leases, signs of life, one result a job, a page, a token."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from aiohttp import ClientError
from aiohttp.test_utils import TestClient, TestServer

from tests.plugins.queue.conftest import job
from vellumd_queue.server import faults
from vellumd_queue.server.app import make_app
from vellumd_queue.server.faults import Faults
from vellumd_queue.server.ledger import Ledger


@pytest.fixture
async def client(tmp_path: Path) -> AsyncIterator[TestClient]:
    """A server with a lease of no time at all."""
    ledger = Ledger(tmp_path / "queue.sqlite", 0.0)
    async with TestClient(TestServer(make_app(ledger))) as opened:
        yield opened
    ledger.close()


async def test_a_job_comes_and_goes(client: TestClient) -> None:
    """Given until it is answered; the first answer counts, the second is told so."""
    assert (await client.get("/api/queue/next")).status == 204
    assert (await client.post("/api/queue/jobs", json=job(7))).status == 201
    for _ in range(2):  # the lease is over at once
        given = await (await client.get("/api/queue/next?worker=w")).json()
        assert given == job(7)
    answer = {"id": 7, "status": "done", "image": "QUJD"}
    statuses = [(await client.post("/api/queue/result", json=answer)).status for _ in range(2)]
    assert statuses == [200, 409]
    assert await (await client.get("/api/queue/jobs/7/result")).json() == answer
    assert (await client.post("/api/queue/result", json={"id": 8, "status": "x"})).status == 404
    assert (await client.get("/api/queue/next")).status == 204


async def test_a_lease_is_renewed_by_its_worker(tmp_path: Path) -> None:
    """Nobody else gets the job meanwhile, and nobody else can renew it."""
    ledger = Ledger(tmp_path / "queue.sqlite")
    ledger.add(job(7))
    assert ledger.lease("w") == job(7)
    assert ledger.lease("other") is None
    assert ledger.renew(7, "w")
    assert not ledger.renew(7, "other")
    assert ledger.counts() == {"waiting": 0, "leased": 1, "done": 0, "failed": 0}
    ledger.close()


async def test_the_page_shows_jobs_as_text(client: TestClient) -> None:
    """An id cannot become markup."""
    await client.post("/api/queue/jobs", json=job("<script>"))
    page = await (await client.get("/")).text()
    assert "1 waiting" in page and "&lt;script&gt;" in page and "<script>" not in page


async def test_a_token_is_asked_for(tmp_path: Path) -> None:
    """Everywhere, once there is one."""
    ledger = Ledger(tmp_path / "queue.sqlite")
    async with TestClient(TestServer(make_app(ledger, "secret"))) as client:
        for path in ("/", "/api/queue/next"):
            assert (await client.get(path)).status == 401
            headers = {"Authorization": "Bearer secret"}
            assert (await client.get(path, headers=headers)).status in (200, 204)
    ledger.close()


async def test_half_characters_are_no_fault_of_the_server(client: TestClient) -> None:
    """JSON can spell them, no database takes them; ids are kept as they were spelt."""
    added = {"id": "\ud800", "image": "x", "prompt": "\udfff"}
    assert (await client.post("/api/queue/jobs", json=added)).status == 201
    beat = {"id": "\ud800", "worker": "\ud800"}
    assert (await client.post("/api/queue/heartbeat", json=beat)).status == 404
    assert await (await client.get("/api/queue/next")).json() == added


@pytest.mark.parametrize("body", [b"", b"{", b"[1]", b"\xff", b'{"id": [1]}'])
@pytest.mark.parametrize("path", ["jobs", "heartbeat", "result"])
async def test_garbage_is_told(client: TestClient, path: str, body: bytes) -> None:
    """It is the sender's fault, and the server goes on."""
    if path == "jobs" or not body.startswith(b'{"id"'):
        assert (await client.post(f"/api/queue/{path}", data=body)).status == 400
    else:
        assert (await client.post(f"/api/queue/{path}", data=body)).status == 404


SEEN = {
    "500": "GET 500 text, POST 500 text",
    "503": "GET 503 after 1, POST 503 after 1",
    "silence": "GET hung up, POST hung up",
    "reset": "GET hung up, POST hung up",
    "slow": "GET hung up, POST hung up",
    "redirect": "GET 302 text, POST 302 text",
    "html": "GET 200 page, POST 502 page",
    "huge": "GET 200 more than 3 MiB, POST 500 more than 3 MiB",
    "again": "GET 200 job, POST 200 text",
    "other": "GET 200 other job, POST 200 text",
    "cut": "GET 204 text, POST hung up",
}


@pytest.mark.parametrize("kind", faults.ALL)
async def test_what_a_fault_does(kind: str, tmp_path: Path) -> None:
    """Each breaks the answers that it is for as its name says, and is counted."""
    ledger = Ledger(tmp_path / "queue.sqlite")
    ledger.add(job(7))
    ledger.lease("w")
    broken = Faults(ledger, 1.0, 0, (kind,), silence_s=0.3)
    async with TestClient(TestServer(make_app(ledger, faults=broken))) as client:
        pulled = await seen(client, "GET", "next")
        posted = await seen(client, "POST", "result")
    assert f"GET {pulled}, POST {posted}" == SEEN[kind]
    times = 1 if kind in (*faults.NEXT, *faults.RESULT) else 2
    assert ledger.faults() == {kind: times}
    # Only a result whose answer is cut, or that is not broken at all, was taken.
    assert bool(ledger.result("7")) == (kind in (*faults.NEXT, *faults.RESULT))
    ledger.close()


async def seen(client: TestClient, method: str, path: str) -> str:
    """What a worker sees of an answer."""
    body = {"id": 7, "status": "done"} if method == "POST" else None
    try:
        async with client.request(
            method, f"/api/queue/{path}", json=body, allow_redirects=False
        ) as answer:
            start = b""
            async for piece in answer.content.iter_chunked(1 << 16):
                start += piece
                if len(start) > 3 << 20:
                    return f"{answer.status} more than 3 MiB"
    except ClientError:
        return "hung up"
    if "Retry-After" in answer.headers:
        return f"{answer.status} after {answer.headers['Retry-After']}"
    if start.startswith(b"<!doctype"):
        return f"{answer.status} page"
    if b'"image"' in start:
        return f"{answer.status} {'other ' * (b'other' in start)}job"
    return f"{answer.status} text"
