"""The database file: how it is opened, and how its schema comes up to date."""

from __future__ import annotations

import hashlib
import os
import sqlite3
from importlib import resources
from pathlib import Path

from vellumd import errors, platform

BUSY_S = 5.0
"""Seconds to wait for another program's lock before the caller hears of it."""

PLAUSIBLE = 1000
"""Schema versions beyond are no later vellumd's but damage."""

_FILES = sorted(
    (file for file in (resources.files("vellumd.store") / "migrations").iterdir()
     if file.name.endswith(".sql")),
    key=lambda file: file.name,
)  # fmt: skip
MIGRATIONS = {int(file.name.removesuffix(".sql")): file for file in _FILES}
"""The .sql files by the schema version that each one makes."""

NEWEST = max(MIGRATIONS)


class NewerSchemaError(errors.ConfigError):
    """The database was written by a newer vellumd."""


def connect(path: Path | str) -> sqlite3.Connection:
    """A connection that survives a power cut: WAL, synchronous=FULL.

    It knows the function that the triggers seal rows with; a connection made without it
    cannot change jobs.
    """
    connection = sqlite3.connect(
        path, isolation_level=None, check_same_thread=False, timeout=BUSY_S
    )
    connection.row_factory = sqlite3.Row
    connection.create_function("row_hash", -1, row_hash, deterministic=True)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("PRAGMA foreign_keys = ON")
    connection.execute("PRAGMA secure_delete = ON")  # what is erased is not left in the file
    return connection


def row_hash(*values: object) -> str:
    """The seal of a row: 64 bits of BLAKE2 over its values."""
    return hashlib.blake2b("\x1f".join(map(str, values)).encode(), digest_size=8).hexdigest()


def version_of(connection: sqlite3.Connection) -> int:
    """The schema's version; 0 for a new database. Raises `NewerSchemaError`, `DatabaseError`."""
    version = int(connection.execute("PRAGMA user_version").fetchone()[0])
    if not 0 <= version < PLAUSIBLE:
        raise sqlite3.DatabaseError(f"schema version {version}")
    if version > NEWEST:
        raise NewerSchemaError(
            "The job store was written by a newer vellumd. Install that version, or set "
            "store.dir to another folder."
        )
    return version


def migrate(connection: sqlite3.Connection, wanted: int = NEWEST) -> None:
    """Bring the schema up to version `wanted`: every step in one transaction, or none.

    A database that holds something is copied first, as `NAME.schema-N` beside it.
    Raises `NewerSchemaError` for a database of a newer version, and touches nothing.
    """
    version = version_of(connection)
    if version >= wanted:
        return
    if version:
        back_up(connection, f"schema-{version}")
    steps = [file.read_text("utf-8") for n, file in MIGRATIONS.items() if version < n <= wanted]
    try:
        connection.executescript("\n".join(["BEGIN IMMEDIATE;", *steps]))
        connection.execute(f"PRAGMA user_version = {wanted}")
        connection.execute(f"PRAGMA application_id = {seal_of(connection)}")
        connection.commit()
    finally:
        if connection.in_transaction:
            connection.rollback()


def objects(connection: sqlite3.Connection) -> list[tuple[str, ...]]:
    """Tables, indexes and triggers: type, name, table and the SQL that made each."""
    query = (
        "SELECT type, name, tbl_name, sql FROM sqlite_master WHERE name NOT LIKE 'sqlite_%' "
        "ORDER BY type, name"
    )
    return [tuple(row) for row in connection.execute(query)]


def seal_of(connection: sqlite3.Connection) -> int:
    """A hash of the schema's SQL, which SQLite does not check; kept as the application id.

    Kept, not computed from the migrations: SQLite may write down another text for them
    in a later version.
    """
    return int(row_hash(objects(connection))[:7], 16)


def seal_kept(connection: sqlite3.Connection) -> int:
    """The seal of the last migration; 0 if that knew none."""
    return int(connection.execute("PRAGMA application_id").fetchone()[0])


def back_up(connection: sqlite3.Connection, ending: str) -> Path | None:
    """A durable copy of the database beside it, NAME.ENDING; None for one in memory."""
    file = connection.execute("PRAGMA database_list").fetchone()["file"]
    if not file:
        return None
    path = Path(file)
    target = path.with_name(f"{path.name}.{ending}")
    part = path.with_name(f".{target.name}.part")
    part.unlink(missing_ok=True)
    copy = sqlite3.connect(part)
    try:
        connection.backup(copy)
    finally:
        copy.close()
    with part.open("rb+") as written:
        os.fsync(written.fileno())
    os.replace(part, target)
    platform.fsync_dir(path.parent)
    return target
