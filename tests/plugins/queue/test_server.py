"""The reference server: leases, signs of life, one result a job, a page, a token."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from aiohttp.test_utils import TestClient, TestServer

from tests.plugins.queue.conftest import job
from vellumd_queue.server.app import make_app
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
