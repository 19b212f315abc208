"""A damaged store: set aside, made again from the folders; nothing accepted is lost."""

from __future__ import annotations

import asyncio
import json
import random
import secrets
import shutil
import sqlite3
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tests.jobs_on_disk import NAME, OnDisk, ask, fill, opened
from vellumd import errors
from vellumd.models import Job, JobStatus
from vellumd.store import recovery, schema
from vellumd.store.store import Store


def after_a_rebuild(job: Job) -> dict[str, object]:
    """What a folder alone must bring back of a job."""
    kept = {"id", "source", "client_id", "batch", "created", "request", "results", "meta",
            "warnings", "elapsed_s", "error", "retry_of", "model"}  # fmt: skip
    status = JobStatus.QUEUED if job.status is JobStatus.RUNNING else job.status
    return {**job.model_dump(include=kept), "status": status}


async def check_nothing_lost(folder: Path, before: list[Job], picture: bytes) -> Store:
    """Every job is there as it was accepted and as it ended, and its key and delivery too."""
    async with opened(folder) as disk:
        store, jobs = disk.store, disk.jobs
        await jobs.recover()
        after = [await jobs.get(job.id) for job in before]
        assert [after_a_rebuild(job) for job in after] == [after_a_rebuild(job) for job in before]
        request = await ask(jobs, picture, 0)
        assert (await jobs.submit(request, "test", key="k0")).id == before[0].id
        owed = {row.job_id for row in await store.pending_deliveries("test", 1000)}
        assert owed == {job.id for job in before if job.status.terminal}
        assert await store.last_seq() >= len(before)
        return store


def kill(folder: Path, copy: Path) -> None:
    """`copy` is what a SIGKILL at this moment would leave of `folder`."""
    shutil.copytree(folder, copy)


def scribble(file: Path, chance: random.Random, pages: int) -> None:
    """Random bytes over random pages, whole ones or a part."""
    data = bytearray(file.read_bytes())
    for _ in range(pages):
        size = chance.choice([1, 16, 512, 4096])
        at = chance.randrange(max(1, len(data) - size))
        data[at : at + size] = chance.randbytes(min(size, len(data) - at))
    file.write_bytes(data)


@pytest.fixture
async def killed(
    tmp_path: Path, picture: Callable[..., bytes]
) -> tuple[Path, Path, list[Job], bytes]:
    """A data folder of 25 jobs after a clean stop, and as a kill would have left it."""
    clean, killed = tmp_path / "clean", tmp_path / "killed"
    async with opened(clean) as disk:
        before = await fill(disk, picture(), 25)
        kill(clean, killed)
    return clean, killed, before, picture()


Killed = tuple[Path, Path, list[Job], bytes]


async def test_random_bytes_over_random_pages(killed: Killed, full: bool, tmp_path: Path) -> None:
    """Whatever the bytes hit, of the database or its log, all jobs are there within 5 s."""
    clean, dirty, before, picture = killed
    seed = secrets.randbits(32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    rebuilt = 0
    for number in range(400 if full else 40):
        folder = tmp_path / str(number)
        shutil.copytree(chance.choice([clean, dirty]), folder)
        files = [file for file in folder.glob(f"{NAME}*") if file.stat().st_size > 100]
        scribble(chance.choice(files), chance, chance.randint(1, 8))
        began = time.monotonic()
        store = await check_nothing_lost(folder, before, picture)
        assert time.monotonic() - began < 5
        if store.rebuilt:
            rebuilt += 1
            assert (folder / store.rebuilt.kept).exists()
        shutil.rmtree(folder)
    assert rebuilt > 5


@pytest.mark.parametrize(
    "damage",
    ["log cut in half", "log gone", "log empty", "shm gone", "database gone", "database empty",
     "database of zeros", "mark gone", "mark garbled", "mark of nines"],
)  # fmt: skip
async def test_files_cut_or_gone(killed: Killed, damage: str) -> None:
    """A kill and a lost or shortened file together lose no job."""
    _, folder, before, picture = killed
    file = folder / (NAME + {"log": "-wal", "shm": "-shm", "mark": ".mark"}.get(
        damage.split()[0], ""
    ))  # fmt: skip
    size = file.stat().st_size
    if damage.endswith("gone"):
        file.unlink()
    else:
        file.write_bytes({
            "half": file.read_bytes()[: size // 2], "empty": b"", "zeros": bytes(size),
            "garbled": b"\xff" * 20, "nines": b"9" * 20,
        }[damage.split()[-1]])  # fmt: skip
    store = await check_nothing_lost(folder, before, picture)
    if damage != "database of zeros":  # then all pages are in the log, and nothing is lost
        assert (store.rebuilt is None) == damage.startswith(("shm", "mark"))


@pytest.mark.parametrize("table", ["jobs", "deliveries", "events", "tally", "turns"])
async def test_another_letter_in_a_row_is_seen(killed: Killed, table: str) -> None:
    """SQLite finds such pages whole; the row's own hash does not."""
    clean, _, before, picture = killed
    plain = sqlite3.connect(clean / NAME, isolation_level=None)
    plain.create_function("row_hash", -1, lambda *values: "not the daemon's")
    plain.execute({
        "jobs": "UPDATE jobs SET resolved = replace(resolved, 'make it 1', 'make it 7')",
        "deliveries": "UPDATE deliveries SET reply = '{\"to\": 99}' WHERE number = 1",
        "events": "UPDATE events SET data = '{' WHERE seq = 1",
        "turns": "UPDATE turns SET waiting = waiting + 1",
        "tally": "UPDATE tally SET jobs = jobs + 1 WHERE status = 'done'",
    }[table])  # fmt: skip
    plain.close()
    store = await check_nothing_lost(clean, before, picture)
    assert store.rebuilt and store.rebuilt.jobs == len(before)


async def test_another_letter_in_the_schema_is_seen(killed: Killed) -> None:
    """A rule of the database that reads otherwise would refuse what is right, or take anything."""
    clean, _, before, picture = killed
    data = (clean / NAME).read_bytes()
    assert b"('queued', 'running', 'done', 'failed', 'cancelled')" in data
    (clean / NAME).write_bytes(
        data.replace(b"'failed', 'cancelled')", b"'failed', 'cancel\xeced')")
    )
    store = await check_nothing_lost(clean, before, picture)
    assert store.rebuilt


async def test_a_whole_store_is_left_alone(killed: Killed) -> None:
    """After a clean stop and after a kill nothing is set aside."""
    for folder in killed[:2]:
        store = await check_nothing_lost(folder, killed[2], killed[3])
        assert store.rebuilt is None
        assert not list(folder.glob("*damaged*"))


async def test_what_was_never_accepted_stays_out(killed: Killed) -> None:
    """A folder without a row, left by a kill before the commit, is swept as ever."""
    clean = killed[0]
    stray = clean / "spool" / "019f0000-0000-7000-8000-000000000000"
    shutil.copytree(clean / "spool" / killed[2][0].id, stray)
    await check_nothing_lost(clean, killed[2], killed[3])
    assert not stray.exists()


async def test_a_store_that_is_gone_altogether_is_rebuilt(killed: Killed) -> None:
    """Database, log and mark removed: the folders alone bring all jobs back."""
    _, folder, before, picture = killed
    for file in folder.glob(f"{NAME}*"):
        file.unlink()
    store = await check_nothing_lost(folder, before, picture)
    assert store.rebuilt and store.rebuilt.reason == "it was missing"


BAD_REQUESTS: dict[str, Callable[[dict[str, Any]], object]] = {
    "no JSON": lambda told: told.clear(),
    "another's": lambda told: told.update(id="019f0000-0000-7000-8000-000000000000"),
    "a batch that is no text": lambda told: told["request"].update(batch={"a": 1}),
    "a time beyond all clocks": lambda told: told.update(created=10**40),
    "a time beyond the calendar": lambda told: told.update(created=10**17),
    "a lane that is no number": lambda told: told.update(lane=10**30),
    "a batch that is no Unicode": lambda told: told["request"].update(batch="\ud800"),
}


@pytest.mark.parametrize("bad", BAD_REQUESTS)
async def test_a_bad_request_file_costs_its_own_job_alone(
    killed: Killed, bad: str, caplog: pytest.LogCaptureFixture
) -> None:
    """It is named, its folder is kept, and however often one starts there is one copy."""
    clean, _, before, picture = killed
    lost, folder = before[3], clean / "spool" / before[3].id
    told = json.loads((folder / "request.json").read_text())
    BAD_REQUESTS[bad](told)
    (folder / "request.json").write_text(json.dumps(told) if told else "{")
    (clean / NAME).write_bytes(secrets.token_bytes(1 << 16))
    for start in range(3):
        store = await check_nothing_lost(clean, [job for job in before if job != lost], picture)
        assert bool(store.rebuilt) == (start == 0)
    assert f"job {lost.id} could not be restored" in caplog.text
    kept = clean / "spool" / f"{lost.id}.unreadable"
    assert (kept / "request.json").exists() and (kept / "input-1.png").exists()
    assert len(list(clean.glob("*damaged*"))) == 1


async def test_a_bad_request_file_that_a_backup_brought_back(killed: Killed) -> None:
    """What was set aside before stays, and stops no start."""
    clean, _, before, picture = killed
    lost = before[3]
    folder, kept = clean / "spool" / lost.id, clean / "spool" / f"{lost.id}.unreadable"
    (folder / "request.json").write_text("{")
    for _ in range(3):
        shutil.copytree(folder, folder.with_name("backup"))
        (clean / NAME).write_bytes(secrets.token_bytes(1 << 16))
        await check_nothing_lost(clean, [job for job in before if job != lost], picture)
        folder.with_name("backup").rename(folder)
    assert {found.name for found in kept.parent.glob("*.unreadable*")} == {
        kept.name, f"{kept.name}-2", f"{kept.name}-3",
    }  # fmt: skip


@pytest.mark.parametrize("ending", ["", ".mark"])
async def test_a_store_that_cannot_be_opened_now_is_no_wrong_setting(
    tmp_path: Path, ending: str
) -> None:
    """systemd gives up on wrong settings, but a full disk will have room again."""
    (tmp_path / f"{NAME}{ending}").mkdir()
    with pytest.raises(recovery.UnusableStoreError) as caught:
        async with opened(tmp_path):
            pass
    assert not isinstance(caught.value, errors.ConfigError)


async def test_a_bad_end_file_costs_no_job(killed: Killed) -> None:
    """A job whose end says what cannot be is done once more."""
    clean, _, before, _ = killed
    failed = next(job for job in before if job.error)
    end = clean / "spool" / failed.id / "end.json"
    told = json.loads(end.read_text())
    end.write_text(json.dumps({**told, "data": {**told["data"], "elapsed_s": "long"}}))
    (clean / NAME).unlink()
    async with opened(clean) as disk:
        statuses = {job.id: (await disk.jobs.get(job.id)).status for job in before}
    assert statuses.pop(failed.id) is JobStatus.QUEUED
    assert [statuses[job.id] for job in before if job.status.terminal and job != failed] == [
        job.status for job in before if job.status.terminal and job != failed
    ]


@pytest.mark.parametrize("damage", ["log", "database"])
async def test_a_rebuild_that_fails_leaves_the_old_store(
    killed: Killed, damage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A start that finds no room changes nothing, however often; the next one mends."""
    _, folder, before, picture = killed
    (folder / (NAME + ("-wal" if damage == "log" else ""))).write_bytes(b"")
    there = {file.name for file in folder.iterdir()} | {f"{NAME}-wal", f"{NAME}-shm"}

    def full(*_: object) -> int:
        raise sqlite3.OperationalError("database or disk is full")

    with monkeypatch.context() as patched:
        patched.setattr(recovery.rebuild, "from_folders", full)
        for _ in range(3):
            with pytest.raises(recovery.UnusableStoreError, match="disk is full"):
                async with opened(folder):
                    pass
    assert {file.name for file in folder.iterdir()} <= there | {f"{NAME}.new"}
    assert (await check_nothing_lost(folder, before, picture)).rebuilt


@pytest.mark.parametrize("paused", [True, False])
@pytest.mark.parametrize("damage", ["garbled", "log gone", "gone"])
async def test_a_pause_outlives_the_database(killed: Killed, damage: str, paused: bool) -> None:
    """What somebody paused stays so, and what was resumed, whatever an old copy says."""
    folder = killed[1]
    async with opened(folder) as disk:
        await disk.jobs.set_paused(0, not paused)
    async with opened(folder) as disk:
        await disk.jobs.set_paused(0, paused)
        await ended(disk)
        kill(folder, folder / "copy")
    folder /= "copy"
    if damage == "garbled":
        (folder / NAME).write_bytes(secrets.token_bytes(1 << 16))
    else:
        (folder / (NAME + ("-wal" if damage == "log gone" else ""))).unlink()
    async with opened(folder) as disk:
        assert disk.store.rebuilt and await disk.jobs.is_paused(0) == paused


async def ended(disk: OnDisk) -> None:
    """Something happens in the store."""
    (running, *_) = await disk.store.running()
    await disk.jobs.failed(running.id, errors.BadOutput("Black."))


@pytest.mark.parametrize("code", [sqlite3.SQLITE_IOERR_SHMSIZE, sqlite3.SQLITE_FULL])
async def test_a_full_disk_is_no_damage(
    killed: Killed, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    """A healthy file stays where it is when SQLite has no room beside it."""
    clean = killed[0]

    def full(_: sqlite3.Connection) -> str:
        error = sqlite3.OperationalError("disk I/O error")
        error.sqlite_errorcode = code
        raise error

    with monkeypatch.context() as patched:
        patched.setattr(recovery.integrity, "damage", full)
        with pytest.raises(recovery.UnusableStoreError, match="disk is full"):
            async with opened(clean):
                pass
    assert not list(clean.glob("*damaged*"))
    await check_nothing_lost(clean, killed[2], killed[3])


async def test_a_locked_store_is_not_damaged(
    killed: Killed, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another program's lock refuses the start and leaves the file where it is."""
    monkeypatch.setattr(schema, "BUSY_S", 0.1)
    clean = killed[0]
    rude = sqlite3.connect(clean / NAME, isolation_level=None)
    rude.execute("PRAGMA locking_mode = EXCLUSIVE")
    rude.execute("BEGIN EXCLUSIVE")
    with pytest.raises(recovery.UnusableStoreError, match="another program"):
        async with opened(clean):
            pass
    rude.execute("ROLLBACK")
    rude.close()
    assert not list(clean.glob("*damaged*"))
    await check_nothing_lost(clean, killed[2], killed[3])


async def test_a_large_store_is_rebuilt_within_seconds(
    tmp_path: Path, picture: Callable[..., bytes], full: bool
) -> None:
    """10,000 jobs, half of them done: back within 5 s (300 in the short run)."""
    count = 10_000 if full else 300
    async with opened(tmp_path) as disk:
        for n in range(count // 2):
            await disk.finish(picture(), n)
            await disk.jobs.submit(await ask(disk.jobs, picture(), n), "test")
            await disk.jobs.failed((await claimed(disk)).id, errors.BadOutput("Black."))
    (tmp_path / NAME).write_bytes(secrets.token_bytes(1 << 20))
    began = time.monotonic()
    async with opened(tmp_path) as disk:
        await disk.jobs.recover()
        took = time.monotonic() - began
        assert disk.store.rebuilt and disk.store.rebuilt.jobs == count
        assert (disk.store.tally["done"], disk.store.tally["failed"]) == (count // 2, count // 2)
    print(f"{count} jobs rebuilt in {took:.2f} s")
    assert took < 5


async def claimed(disk: OnDisk) -> Job:
    """The next job, running."""
    job = await disk.jobs.claim(0)
    assert job
    return job


async def test_a_start_that_is_given_up_leaves_nothing_open(killed: Killed) -> None:
    """The folder is free when the call has ended, not when its thread ends some time later."""
    folder = killed[1]
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0):
            await Store.open(folder / NAME, lambda events: None)
    assert not (folder / f"{NAME}-wal").exists()


# older and newer schemas


def old_database(path: Path, version: int) -> None:
    """A database as that version left it, with a job that is done and one that waits."""
    connection = schema.connect(path)
    with suppress(schema.NewerSchemaError):
        schema.migrate(connection, version)
    for n, status in enumerate(["done", "queued"]):
        connection.execute(
            "INSERT INTO jobs (id, status, source, digest, resolved, created) "
            "VALUES (?, ?, 'http', 'd', ?, 5)",
            [f"job-{n}", status, OLD_EDIT],
        )
    connection.execute(
        "INSERT INTO deliveries (job_id, source, reply, state) VALUES ('job-0', 'http', '1', "
        "'pending')"
    )
    connection.close()


OLD_EDIT = json.dumps({
    "model": "demo", "prompt": "make it red", "steps": 8, "true_cfg_scale": 1.0, "seed": 1,
    "images": [{"sha256": "a" * 64, "width": 64, "height": 48}],
})  # fmt: skip


@pytest.mark.parametrize("version", [v for v in schema.MIGRATIONS if v < schema.NEWEST])
async def test_an_older_store_is_migrated(tmp_path: Path, version: int) -> None:
    """Every job is there, the next change is accepted, and a copy of before lies beside it."""
    old_database(tmp_path / NAME, version)
    store = await Store.open(tmp_path / NAME, lambda events: None)
    assert store.rebuilt is None
    assert [await store.get(f"job-{n}") for n in range(2)]
    assert len(await store.pending_deliveries("http")) == 1
    claimed = await store.claim(0)
    assert claimed and claimed.id == "job-1"
    await store.close()
    copy = sqlite3.connect(tmp_path / f"{NAME}.schema-{version}")
    assert copy.execute("PRAGMA user_version").fetchone() == (version,)
    assert copy.execute("SELECT id FROM jobs ORDER BY id").fetchall() == [("job-0",), ("job-1",)]
    copy.close()
    again = await Store.open(tmp_path / NAME, lambda events: None)
    assert again.rebuilt is None
    await again.close()


def test_a_migration_is_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A step that fails takes the steps before it back."""
    old_database(tmp_path / NAME, 1)
    broken = tmp_path / "9.sql"
    broken.write_text("CREATE TABLE half (n INTEGER); CREATE TABLE half (n INTEGER);")
    monkeypatch.setitem(schema.MIGRATIONS, 9, broken)
    connection = schema.connect(tmp_path / NAME)
    with pytest.raises(sqlite3.OperationalError, match="half"):
        schema.migrate(connection, 9)
    assert schema.version_of(connection) == 1
    columns = {row["name"] for row in connection.execute("PRAGMA table_info(jobs)")}
    assert "seal" not in columns
    connection.close()


async def test_a_newer_store_is_refused(tmp_path: Path) -> None:
    """It is not touched, and the error says what to do."""
    connection = schema.connect(tmp_path / NAME)
    schema.migrate(connection)
    connection.execute(f"PRAGMA user_version = {schema.NEWEST + 1}")
    connection.close()
    before = (tmp_path / NAME).read_bytes()
    with pytest.raises(schema.NewerSchemaError, match="newer vellumd"):
        await Store.open(tmp_path / NAME, lambda events: None)
    assert (tmp_path / NAME).read_bytes() == before
