"""The database thread: order, preparation before a commit, and an orderly end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from vellumd import errors
from vellumd.store import schema
from vellumd.store.database import Database, Transaction


def open_database(
    folder: Path, after_commit: Callable[[Transaction], None] = lambda tx: None
) -> Database:
    connection = schema.connect(folder / "x.sqlite")
    return Database(connection, after_commit, lambda committed: None)


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[Database]:
    database = Database(
        schema.connect(tmp_path / "x.sqlite"), lambda tx: None, lambda committed: None
    )
    await database.run(lambda tx: tx.execute("CREATE TABLE t (n INTEGER)"))
    yield database
    await database.close()


def insert(number: int) -> object:
    def work(tx: Transaction) -> int:
        tx.execute("INSERT INTO t VALUES (?)", [number])
        return number

    return work


def numbers(tx: Transaction) -> list[int]:
    return [row[0] for row in tx.execute("SELECT n FROM t ORDER BY rowid")]


async def test_work_is_done_in_the_order_of_its_coming(database: Database) -> None:
    """Also when it shares commits."""
    await asyncio.gather(*(database.run(insert(n)) for n in range(100)))  # type: ignore[arg-type]
    assert await database.run(numbers) == list(range(100))


async def test_nothing_is_written_when_its_preparation_fails(database: Database) -> None:
    """What must be on disk first is not, so the row is not made, and the error is told."""

    def full() -> None:
        raise errors.StorageFull("The disk is full.")

    with pytest.raises(errors.StorageFull):
        await database.run(insert(1), full)  # type: ignore[arg-type]
    assert await database.run(numbers) == []


async def test_preparation_is_over_before_the_work(database: Database, tmp_path: Path) -> None:
    """The work finds what its preparation made."""
    file = tmp_path / "made"
    assert await database.run(lambda tx: file.exists(), file.touch)


async def test_a_caller_that_leaves_changes_nothing(database: Database) -> None:
    """Its work was accepted and is done all the same."""
    async with asyncio.TaskGroup() as tasks:
        leaving = tasks.create_task(database.run(insert(7)))  # type: ignore[arg-type]
        await asyncio.sleep(0)
        leaving.cancel()
    assert await database.run(numbers) == [7]


async def test_what_waits_is_finished_at_the_end(tmp_path: Path) -> None:
    """close() serves everything that came before it."""
    database = Database(
        schema.connect(tmp_path / "y.sqlite"), lambda tx: None, lambda committed: None
    )
    waiting = [database.run(lambda tx: 1) for _ in range(300)]
    async with asyncio.TaskGroup() as tasks:
        all_of_them = tasks.create_task(asyncio.wait_for(asyncio.gather(*waiting), 10))
        await asyncio.sleep(0)
        await database.close()
    assert sum(all_of_them.result()) == 300


async def test_a_failed_look_back_loses_nothing(tmp_path: Path) -> None:
    """What was committed is answered, and the next work is done."""

    def broken(tx: Transaction) -> None:
        raise OSError("the disk coughs")

    database = open_database(tmp_path, broken)

    def tell(tx: Transaction) -> int:
        tx.committed.append("something")
        return 1

    assert [await database.run(tell) for _ in range(2)] == [1, 1]
    await database.close()
