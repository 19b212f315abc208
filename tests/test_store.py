"""The store: every acknowledged change is on disk, every ended job stays as it ended."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from vellumd import errors
from vellumd.models import ImageRef, JobEvent, JobStatus, ResolvedEdit, Result, new_job_id
from vellumd.store import recovery, schema
from vellumd.store.rows import NewJob
from vellumd.store.spool import Spool
from vellumd.store.store import Store

LIMIT = 100


def edit(**change: Any) -> ResolvedEdit:
    picture = ImageRef(sha256="a" * 64, width=64, height=48)
    fields: dict[str, Any] = {
        "model": "demo", "prompt": "make it red", "images": (picture,), "steps": 8,
        "true_cfg_scale": 1.0, "seed": 1,
    }  # fmt: skip
    return ResolvedEdit.model_validate({**fields, **change})


def new(**change: Any) -> NewJob:
    priority = change.pop("priority", 0)
    fields: dict[str, Any] = {
        "id": new_job_id(), "edit": edit(priority=priority), "source": "http", "digest": "d",
    }  # fmt: skip
    return NewJob(**{**fields, **change})


RESULT = Result(n=1, type="image/png", bytes=3, sha256="b" * 64, width=64, height=48, seed=1)


@pytest.fixture
async def events() -> list[JobEvent]:
    return []


@pytest.fixture
async def store(tmp_path: Path, events: list[JobEvent]) -> AsyncIterator[Store]:
    store = await Store.open(tmp_path / "jobs.sqlite", events.extend)
    yield store
    await store.close()


async def test_an_opening_that_is_given_up_leaves_nothing_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The thread that opens the file cannot be stopped: what it opens is closed, too."""
    begun, go_on = threading.Event(), threading.Event()
    found: list[recovery.Opened] = []
    open_file = recovery.open_file

    def slowly(path: Path, spool: Spool | None) -> recovery.Opened:
        begun.set()
        assert go_on.wait(10)
        found.append(open_file(path, spool))
        return found[0]

    monkeypatch.setattr(recovery, "open_file", slowly)
    async with asyncio.TaskGroup() as tasks:
        opening = tasks.create_task(Store.open(tmp_path / "jobs.sqlite", lambda events: None))
        assert await asyncio.to_thread(begun.wait, 10)
        opening.cancel()
        go_on.set()
    with pytest.raises(sqlite3.ProgrammingError, match="closed"):
        found[0].connection.execute("SELECT 1")
    with pytest.raises(ValueError, match="closed"):
        found[0].mark.read()


async def test_a_job_goes_from_queued_to_done(store: Store, events: list[JobEvent]) -> None:
    """Each change returns the job as it then is, and publishes one numbered event."""
    job, created = await store.add(new(client_id="me", batch="b", meta={"k": 1}), LIMIT)
    assert created and job.status is JobStatus.QUEUED and job.meta == {"k": 1}
    running = await store.claim(0)
    assert running and running.id == job.id and running.attempt == 1 and running.started
    done = await store.done(job.id, (RESULT,), 1.5, ())
    assert done.status is JobStatus.DONE and done.results == (RESULT,) and done.elapsed_s == 1.5
    assert [event.type for event in events] == ["queued", "started", "done"]
    assert [event.seq for event in events] == [1, 2, 3]
    assert await store.events(job.id, 0) == events


async def test_order_is_priority_then_age(store: Store) -> None:
    """Higher priority first, then first come first served, whatever the ids are."""
    ids = [(await store.add(new(priority=p), LIMIT))[0].id for p in (0, 5, 0, 5, -1)]
    positions = [(await store.get(job_id)).position for job_id in ids]
    assert positions == [2, 0, 3, 1, 4]
    page = await store.page({"status": "queued", "source": None, "batch": None, "client_id": None},
                            2**62, 10)  # fmt: skip
    assert {job.id: job.position for _, job in page} == dict(zip(ids, positions, strict=True))
    claimed = [await store.claim(0) for _ in ids]
    assert [job.id for job in claimed if job] == [ids[i] for i in (1, 3, 0, 2, 4)]
    assert await store.claim(0) is None


async def test_a_requeued_job_is_first_again(store: Store) -> None:
    """What was running when something died does not wait behind later jobs."""
    first = (await store.add(new(), LIMIT))[0]
    await store.add(new(), LIMIT)
    await store.claim(0)
    await store.requeue(first.id, daemon_death=True)
    again = await store.claim(0)
    assert again and again.id == first.id and again.attempt == 2


async def test_priority_can_be_changed_while_queued_only(store: Store) -> None:
    """A moved job overtakes; the change shows in its request; a running one is refused."""
    await store.add(new(), LIMIT)
    late = (await store.add(new(), LIMIT))[0]
    moved = await store.set_priority(late.id, 9)
    assert moved.request and moved.request.priority == 9
    claimed = await store.claim(0)
    assert claimed and claimed.id == late.id
    with pytest.raises(errors.BadRequest):
        await store.set_priority(late.id, 0)


@pytest.mark.parametrize("end", ["done", "failed", "cancelled"])
async def test_an_end_absorbs(store: Store, tmp_path: Path, end: str) -> None:
    """No method, and no SQL either, moves a job out of a terminal status."""
    job = (await store.add(new(), LIMIT))[0]
    await store.claim(0)
    if end == "done":
        await store.done(job.id, (RESULT,), 1.0, ())
    elif end == "failed":
        await store.failed(job.id, errors.BadOutput("Black."))
    else:
        await store.cancelled(job.id)
    for change in (
        store.done(job.id, (RESULT,), 1.0, ()),
        store.failed(job.id, errors.BadOutput("Black.")),
        store.requeue(job.id),
    ):
        with pytest.raises(errors.Internal):
            await change
    assert await store.cancelled(job.id) is None
    assert (await store.get(job.id)).status == end
    connection = schema.connect(tmp_path / "jobs.sqlite")
    with pytest.raises(sqlite3.IntegrityError, match="ended"):
        connection.execute("UPDATE jobs SET status = 'queued'")
    connection.close()


async def test_same_key_same_job(store: Store) -> None:
    """A key or an id seen before gives the first job; with another request, an error."""
    first, _ = await store.add(new(key="k"), LIMIT)
    again, created = await store.add(new(key="k"), LIMIT)
    assert again.id == first.id and not created
    by_id, created = await store.add(new(id=first.id), LIMIT)
    assert by_id.id == first.id and not created
    with pytest.raises(errors.IdempotencyMismatch):
        await store.add(new(key="k", digest="other"), LIMIT)
    other, created = await store.add(new(key="k", source="mqtt"), LIMIT)
    assert created and other.id != first.id


async def test_a_full_queue_refuses(store: Store) -> None:
    """The limit counts waiting jobs; one more is refused and leaves nothing behind."""
    await store.add(new(), 1)
    late = new()
    with pytest.raises(errors.QueueFull):
        await store.add(late, 1)
    with pytest.raises(errors.NotFound):
        await store.get(late.id)
    await store.claim(0)
    await store.add(late, 1)


async def test_two_engine_deaths_fail_a_job(store: Store) -> None:
    """The second death during one job ends it as engine_crashed; a daemon's fifth too."""
    job = (await store.add(new(), LIMIT))[0]
    await store.claim(0)
    assert (await store.requeue(job.id, engine_death=True)).status is JobStatus.QUEUED
    await store.claim(0)
    ended = await store.requeue(job.id, engine_death=True)
    assert ended.error and ended.error.code == "engine_crashed"
    other = (await store.add(new(), LIMIT))[0]
    for death in range(5):
        await store.claim(0)
        ended = await store.requeue(other.id, daemon_death=True)
        assert ended.status.terminal == (death == 4)


async def test_a_cancel_request_survives_a_crash(store: Store) -> None:
    """Asked to cancel while running, then the daemon died: it ends instead of running again."""
    job = (await store.add(new(), LIMIT))[0]
    await store.claim(0)
    assert await store.cancel(job.id)
    assert (await store.requeue(job.id, daemon_death=True)).status is JobStatus.CANCELLED
    assert not await store.cancel(job.id)


async def test_a_cancel_meets_a_job_that_is_put_back(store: Store) -> None:
    """Whichever comes first, the job ends: a cancel is never answered and forgotten."""
    for _ in range(30):
        job = (await store.add(new(), LIMIT))[0]
        await store.claim(0)
        await asyncio.gather(store.requeue(job.id, engine_death=True), store.cancel(job.id))
        assert (await store.get(job.id)).status is JobStatus.CANCELLED


async def test_a_paused_lane_gives_no_job(store: Store) -> None:
    """From the moment the pause is on disk, whatever the executor knows of it."""
    await store.add(new(), LIMIT)
    await store.set_paused(0, True)
    assert await store.claim(0) is None
    await store.set_paused(0, False)
    assert await store.claim(0) is not None


async def test_a_mark_that_cannot_be_written(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is a note only: who waits for jobs hears of them all the same."""

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(store._mark, "write", full)
    await store.add(new(), LIMIT)
    assert store.tally["queued"] == 1


async def test_a_delivery_is_owed_from_the_end_on(store: Store) -> None:
    """The row written with the job becomes pending with its end, and is settled once."""
    job = (await store.add(new(reply={"topic": "t"}), LIMIT))[0]
    assert await store.pending_deliveries("http") == []
    await store.claim(0)
    await store.done(job.id, (RESULT,), 1.0, ())
    (row,) = await store.pending_deliveries("http")
    assert row.job_id == job.id and row.reply == {"topic": "t"}
    with pytest.raises(errors.NotDone):
        await store.forget(job.id)
    await store.settle_delivery(row.number, "delivered", None, 0)
    assert await store.pending_deliveries("http") == []
    await store.forget(job.id)
    with pytest.raises(errors.NotFound):
        await store.get(job.id)


async def test_who_asks_again_is_owed_again(store: Store) -> None:
    """A known job's answer goes to another address too, and once more to the same."""
    job = (await store.add(new(reply="here", key="k"), LIMIT))[0]
    again = new(reply="there", key="k")
    assert (await store.accepted(again) or job).id == job.id
    await store.claim(0)
    await store.done(job.id, (RESULT,), 1.0, ())
    rows = await store.pending_deliveries("http")
    assert [row.reply for row in rows] == ["here", "there"]
    for row in rows:
        await store.settle_delivery(row.number, "delivered", None, 0)
    await store.accepted(again)
    assert [row.reply for row in await store.pending_deliveries("http")] == ["there"]
    assert (await store.find("http", "k")).id == job.id
    with pytest.raises(errors.NotFound):
        await store.find("elsewhere", "k")


@pytest.mark.parametrize("ended", ["delivered", "undeliverable", "pending"])
async def test_who_asks_while_the_answer_is_sent_is_owed_again(store: Store, ended: str) -> None:
    """However the sending ends that was under way; and at once, also if that is put off."""
    job = (await store.add(new(reply="here", key="k"), LIMIT))[0]
    await store.claim(0)
    await store.done(job.id, (RESULT,), 1.0, ())
    (out,) = await store.pending_deliveries("http")
    await store.accepted(new(reply="here", key="k"))
    await store.settle_delivery(out.number, ended, None, 2**50)
    (row,) = await store.pending_deliveries("http")
    assert row.address == out.address and row.due == 0
    await store.settle_delivery(row.number, "delivered", None, 0)
    assert await store.pending_deliveries("http") == []


async def test_who_asks_before_the_end_is_owed_once(store: Store) -> None:
    """While it waits and while it runs: one answer comes after all of these askings."""
    job = (await store.add(new(reply="here", key="k"), LIMIT))[0]
    await store.accepted(new(reply="here", key="k"))
    await store.claim(0)
    await store.accepted(new(reply="here", key="k"))
    assert await store.pending_deliveries("http") == []
    await store.done(job.id, (RESULT,), 1.0, ())
    assert [row.reply for row in await store.pending_deliveries("http")] == ["here"]


async def test_all_is_there_after_a_reopen(tmp_path: Path) -> None:
    """What was acknowledged is read back by the next process; seq goes on counting."""
    store = await Store.open(tmp_path / "jobs.sqlite", lambda events: None)
    ids = [(await store.add(new(), LIMIT))[0].id for _ in range(5)]
    await store.close()
    store = await Store.open(tmp_path / "jobs.sqlite", lambda events: None)
    assert await store.ids() == ids and await store.last_seq() == 5
    await store.close()


async def test_a_failed_commit_acknowledges_nothing(tmp_path: Path) -> None:
    """When the disk refuses the commit every caller of the batch hears it, no event leaves."""
    events: list[JobEvent] = []
    broken = False

    def commit(connection: sqlite3.Connection) -> None:
        if broken:
            raise sqlite3.OperationalError("database or disk is full")
        connection.commit()

    store = await Store.open(tmp_path / "jobs.sqlite", events.extend, commit)
    broken = True
    outcomes = await asyncio.gather(
        *(store.add(new(), LIMIT) for _ in range(10)), return_exceptions=True
    )
    assert all(isinstance(outcome, errors.StorageFull) for outcome in outcomes)
    broken = False
    assert await store.ids() == [] and events == []
    await store.add(new(), LIMIT)
    await store.close()


async def test_concurrent_adds_share_commits(tmp_path: Path) -> None:
    """200 senders at once need far fewer commits than 200, and all are kept."""
    commits = 0

    def commit(connection: sqlite3.Connection) -> None:
        nonlocal commits
        commits += 1
        connection.commit()

    store = await Store.open(tmp_path / "jobs.sqlite", lambda events: None, commit)
    await asyncio.gather(*(store.add(new(), 1000) for _ in range(200)))
    assert commits <= 100
    assert len(await store.ids()) == 200
    await store.close()


async def test_one_refusal_leaves_its_batch_alone(store: Store) -> None:
    """In one shared commit a refused job takes nobody with it."""
    await store.add(new(key="k"), LIMIT)
    outcomes = await asyncio.gather(
        store.add(new(), LIMIT), store.add(new(key="k", digest="x"), LIMIT),
        store.add(new(), LIMIT), return_exceptions=True,
    )  # fmt: skip
    kinds = [type(outcome) for outcome in outcomes]
    assert kinds == [tuple, errors.IdempotencyMismatch, tuple]
    assert store.tally["queued"] == 3


async def test_a_newer_schema_is_refused(tmp_path: Path) -> None:
    """A database of a later version is not touched."""
    connection = sqlite3.connect(tmp_path / "jobs.sqlite")
    connection.execute("PRAGMA user_version = 99")
    connection.close()
    with pytest.raises(schema.NewerSchemaError):
        await Store.open(tmp_path / "jobs.sqlite", lambda events: None)


async def test_the_tally_is_what_counting_gives(store: Store, tmp_path: Path) -> None:
    """After every kind of change the kept counts equal counted rows."""
    ids = [(await store.add(new(), LIMIT))[0].id for _ in range(6)]
    for _ in range(4):
        await store.claim(0)
    await store.done(ids[0], (RESULT,), 1.0, ())
    await store.failed(ids[1], errors.BadOutput("Black."))
    await store.requeue(ids[2])
    await store.forget(ids[0])
    await store.cancelled(ids[5])
    connection = sqlite3.connect(tmp_path / "jobs.sqlite")
    counted = dict(connection.execute("SELECT status, count(*) FROM jobs GROUP BY status"))
    connection.close()
    assert {k: n for k, n in store.tally.items() if n} == counted


async def test_pages_meet_without_gap(store: Store) -> None:
    """Walking by cursor gives every job once, newest first, and filters hold."""
    ids = [(await store.add(new(batch="a" if i % 2 else "b"), LIMIT))[0].id for i in range(7)]
    wanted = {"status": None, "source": "http", "batch": "a", "client_id": None}
    before, seen = 2**62, []
    while rows := await store.page(wanted, before, 2):
        seen += [job.id for _, job in rows]
        before = rows[-1][0]
    assert seen == [ids[5], ids[3], ids[1]]


async def test_a_new_job_knows_its_place(store: Store) -> None:
    """The answer to a submission says how many are ahead, as a later look does."""
    for priority, place in ((0, 0), (0, 1), (5, 0), (-5, 3), (0, 3)):
        job, _ = await store.add(new(priority=priority), LIMIT)
        assert job.position == place == (await store.get(job.id)).position
    known = new(id=job.id)
    found = await store.accepted(known)
    assert found and found.id == job.id and found.position == 3
    assert await store.accepted(new(key="k")) is None
    with pytest.raises(errors.IdempotencyMismatch):
        await store.accepted(new(id=job.id, digest="other"))
