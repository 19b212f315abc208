"""The engine process dies or hangs while a whole daemon serves: users lose seconds, no jobs."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

import aiohttp
import pytest

from vellumd.daemon import Daemon

Run = Callable[..., AbstractAsyncContextManager[Daemon]]


async def send(session: aiohttp.ClientSession, photo: bytes, prompt: str = "invert") -> str:
    form = aiohttp.FormData({"prompt": prompt, "steps": "20"})
    form.add_field("images", photo, filename="photo.png")
    async with session.post("/v1/jobs", data=form) as answer:
        assert answer.status == 202, await answer.text()
        job: dict[str, Any] = await answer.json()
        return str(job["id"])


async def until(session: aiohttp.ClientSession, path: str, wanted: Callable[[Any], bool]) -> Any:
    async with asyncio.timeout(30):
        while True:
            async with session.get(path) as answer:
                body = {"http": answer.status, **await answer.json(content_type=None)}
            if wanted(body):
                return body
            await asyncio.sleep(0.005)


async def last_ready(session: aiohttp.ClientSession) -> float:
    """When somebody last asked and was told that the daemon is ready; now, if never again."""
    asked = last = time.monotonic()

    def is_over(body: Any) -> bool:
        nonlocal asked, last
        if body["http"] == 200:
            last = asked
        asked = time.monotonic()
        return bool(body["http"] == 503)

    await until(session, "/readyz", is_over)
    return last


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
async def test_a_death_in_mid_step(
    run_daemon: Run, picture: Callable[..., bytes], how: signal.Signals
) -> None:
    """Who asks /readyz a second after the death (stall_s for a hang) is told 503, /healthz stays
    200; the job runs once more and is done, the next one after it."""
    stall_s = 1.0
    async with (
        run_daemon(paper={"step_s": 0.05}, http={}, engine={"stall_s": stall_s}) as daemon,
        aiohttp.ClientSession(daemon.urls[0]) as session,
    ):
        await until(session, "/readyz", lambda body: body["http"] == 200)
        job, following = await send(session, picture(1)), await send(session, picture(2))
        await until(session, f"/v1/jobs/{job}", lambda body: (body["progress"] or {}).get("step"))
        os.kill(daemon.supervisor.process_id, how)
        began = time.monotonic()
        took = await last_ready(session) - began
        assert took <= (1.0 if how is signal.SIGKILL else stall_s + 1.0)
        async with session.get("/healthz") as answer:
            assert answer.status == 200
        for job_id, attempts in ((job, 2), (following, 1)):
            ended = await until(session, f"/v1/jobs/{job_id}", lambda body: body["ended"])
            assert (ended["status"], ended["attempt"]) == ("done", attempts)
        await until(session, "/readyz", lambda body: body["http"] == 200)


async def test_the_second_death_ends_a_job(run_daemon: Run, picture: Callable[..., bytes]) -> None:
    """A job whose engine dies twice is failed as engine_crashed; the next one is done."""
    async with (
        run_daemon(http={}) as daemon,
        aiohttp.ClientSession(daemon.urls[0]) as session,
    ):
        poison = await send(session, picture(1), "crash")
        healthy = await send(session, picture(2))
        ended = await until(session, f"/v1/jobs/{poison}", lambda body: body["ended"])
        assert ended["error"]["code"] == "engine_crashed" and ended["attempt"] == 2
        ended = await until(session, f"/v1/jobs/{healthy}", lambda body: body["ended"])
        assert ended["status"] == "done"
        async with session.get(f"/v1/jobs/{poison}/result") as answer:
            assert answer.status == 500
            assert (await answer.json())["code"] == "engine_crashed"
