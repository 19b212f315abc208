"""Kills a real daemon at random points while clients send, and records what happened.

Run by itself for a record of a full run:
    python -m tests.trust.kills --kills 200 --engine paper --seed 1 --out FILE
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import io
import json
import os
import random
import signal
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import aiohttp
from PIL import Image

from tests.trust.checker import Execution, History, check
from vellumd.testing import free_port

ROOT = Path(__file__).parents[2]
PAPER = ROOT / "tests" / "fixtures" / "paper_engine"
CLIENTS = 4
SETTLE_S = 900
"""Seconds all jobs get to end once the killing is over."""


@dataclass(frozen=True)
class Plan:
    """How a run goes.

    `pause_s` bounds the time between a start and its kill, `most` the jobs a client sends:
    a real engine needs a second for each.
    """

    folder: Path
    kills: int
    seed: int
    engine: str = "paper"
    pause_s: tuple[float, float] = (0.0, 0.6)
    most: int = 1_000_000


class Run:
    """One run: a daemon that is killed, clients that never give up, a history."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.random = random.Random(plan.seed)
        self.history = History()
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.over = asyncio.Event()

    async def go(self) -> History:
        """Kill, let all end, look at everything that is there."""
        timeout = aiohttp.ClientTimeout(total=30)
        async with (
            aiohttp.ClientSession(self.url, timeout=timeout) as session,
            asyncio.TaskGroup() as tasks,
        ):
            sending = [tasks.create_task(self._send(session, n)) for n in range(CLIENTS)]
            await self._kill(session)
            self.over.set()
            async with self._daemon():
                await self._until_up(session)
                await asyncio.wait(sending)
                await self._settle(session)
                await self._look(session)
        self._read_ledger()
        return self.history

    # the killer

    async def _kill(self, session: aiohttp.ClientSession) -> None:
        for kill in range(self.plan.kills):
            async with self._daemon() as process:
                await self._until_up(session)
                await asyncio.sleep(self.random.uniform(*self.plan.pause_s))
                self.history.kills.append(time.time())
                process.send_signal(signal.SIGKILL)
            if kill % 20 == 19:
                print(f"{kill + 1} kills, {len(self.history.jobs)} jobs accepted", flush=True)

    @asynccontextmanager
    async def _daemon(self) -> AsyncIterator[asyncio.subprocess.Process]:
        command = [
            sys.executable, "-m", "vellumd", "serve", "--store.dir", str(self.plan.folder / "data"),
            "--plugins.http.port", str(self.port), "--log.file", str(self.plan.folder / "log"),
        ]  # fmt: skip
        if self.plan.engine == "paper":
            command += [
                "--engine.name", "paper", "--plugins.paper.step_s", "0.003",
                "--plugins.paper.ledger", str(self.plan.folder / "ledger"),
            ]  # fmt: skip
        path = os.pathsep.join([str(PAPER), os.environ.get("PYTHONPATH", "")])
        process = await asyncio.create_subprocess_exec(
            *command, env={**os.environ, "PYTHONPATH": path}, cwd=self.plan.folder,
            stdout=asyncio.subprocess.DEVNULL,
        )  # fmt: skip
        try:
            yield process
        finally:
            if process.returncode is None:
                process.terminate()
            await process.wait()

    async def _until_up(self, session: aiohttp.ClientSession) -> None:
        async with asyncio.timeout(60):
            while True:
                try:
                    async with session.get("/healthz") as answer:
                        if answer.status == 200:
                            return
                except aiohttp.ClientError:
                    pass
                await asyncio.sleep(0.01)

    # the clients

    async def _send(self, session: aiohttp.ClientSession, client: int) -> None:
        for number in range(self.plan.most):
            if self.over.is_set():
                return
            key = f"{client}-{number}"
            await self._submit(session, key, picture(client * 10_000 + number))

    async def _submit(self, session: aiohttp.ClientSession, key: str, photo: bytes) -> None:
        """Send until it is accepted, as a client with an idempotency key does."""
        while True:
            form = aiohttp.FormData({"prompt": "invert", "steps": "4"})
            form.add_field("images", photo, filename=f"{key}.png")
            try:
                async with session.post(
                    "/v1/jobs", data=form, headers={"Idempotency-Key": key}
                ) as answer:
                    body = await answer.json(content_type=None)
                    if answer.status == 202:
                        self.history.accepted[key].append(body["id"])
                        return
                    assert answer.status in (429, 503), (answer.status, body)
            except (aiohttp.ClientError, TimeoutError, ConnectionError):
                pass  # unknown outcome: the key makes it safe to ask again
            await asyncio.sleep(0.02)

    # what is there in the end

    async def _settle(self, session: aiohttp.ClientSession) -> None:
        async with asyncio.timeout(SETTLE_S):
            for status in ("queued", "running"):
                while (await self._get(session, f"/v1/jobs?status={status}"))["jobs"]:
                    await asyncio.sleep(0.1)

    async def _look(self, session: aiohttp.ClientSession) -> None:
        cursor = ""
        while cursor is not None:
            page = await self._get(session, f"/v1/jobs{cursor and '?cursor=' + cursor}")
            for job in page["jobs"]:
                self.history.final[job["id"]] = job
                self.history.files[job["id"]] = await self._matches(session, job)
            cursor = page["next"]
        self.history.events = self._read_events()
        async with session.get("/v1/jobs/00000000-0000-7000-8000-000000000000") as answer:
            self.history.unknown_status = answer.status

    async def _get(self, session: aiohttp.ClientSession, path: str) -> Any:
        async with session.get(path) as answer:
            assert answer.status == 200, await answer.text()
            return await answer.json()

    async def _matches(self, session: aiohttp.ClientSession, job: dict[str, Any]) -> bool:
        if not job["results"]:
            return False
        for result in job["results"]:
            async with session.get(f"/v1/jobs/{job['id']}/result/{result['n']}") as answer:
                if hashlib.sha256(await answer.read()).hexdigest() != result["sha256"]:
                    return False
        return True

    def _read_events(self) -> dict[str, list[dict[str, object]]]:
        """The durable events as the database has them, each with its time in seconds."""
        import sqlite3

        connection = sqlite3.connect(self.plan.folder / "data" / "jobs.sqlite")
        events: dict[str, list[dict[str, object]]] = {job: [] for job in self.history.final}
        for job, type, at in connection.execute("SELECT job_id, type, at FROM events ORDER BY seq"):
            events[job].append({"type": type, "at": at / 1000})
        connection.close()
        return events

    def _read_ledger(self) -> None:
        """Executions as the paper engine noted them; else as the daemon's events say."""
        ledger = self.plan.folder / "ledger"
        if ledger.exists():
            lines = [line.split() for line in ledger.read_text().splitlines()]
        else:
            lines = [
                [job, str(event["at"])]
                for job, events in self.history.events.items()
                for event in events
                if event["type"] == "started"
            ]
        self.history.executions = [Execution(job, float(at)) for job, at in lines]


def demo_plan(plan: Plan) -> Plan:
    """The same with the real classes: fewer jobs, and time for the engine to load."""
    return replace(plan, engine="demo", pause_s=(2.0, 12.0), most=3 + plan.kills)


def picture(number: int) -> bytes:
    """A small PNG, another one for each number."""
    buffer = io.BytesIO()
    colour = (number % 256, number // 256 % 256, number // 65536)
    Image.new("RGB", (40, 32), colour).save(buffer, "PNG")
    return buffer.getvalue()


def summary(plan: Plan, history: History, seconds: float) -> dict[str, object]:
    """The figures of a run."""
    statuses: dict[str, int] = {}
    for job in history.final.values():
        statuses[str(job["status"])] = statuses.get(str(job["status"]), 0) + 1
    runs = len(history.executions)
    return {
        "engine": plan.engine, "seed": plan.seed, "kills": len(history.kills),
        "accepted": len(history.jobs), "statuses": statuses, "executions": runs,
        "repeated_executions": runs - len({e.job for e in history.executions}),
        "broken": check(history), "seconds": round(seconds, 1),
    }  # fmt: skip


async def run(plan: Plan) -> dict[str, object]:
    """Carry a plan out and judge it."""
    print(f"kills: seed {plan.seed}", flush=True)
    began = time.monotonic()
    history = await Run(plan).go()
    return summary(plan, history, time.monotonic() - began)


def main() -> int:
    """The command line above."""
    import tempfile

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--engine", choices=["paper", "demo"], default="paper")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(2**32))
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        plan = Plan(Path(folder), args.kills, args.seed)
        if args.engine == "demo":
            plan = demo_plan(plan)
        result = asyncio.run(run(plan))
    text = json.dumps({"at": datetime.now().astimezone().isoformat(), **result}, indent=1)
    print(text)
    if args.out:
        args.out.write_text(text + "\n")
    return 1 if result["broken"] else 0


if __name__ == "__main__":
    sys.exit(main())
