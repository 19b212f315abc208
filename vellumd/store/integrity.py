"""Whether a database is whole: its pages, its schema, and what each row says of itself."""

from __future__ import annotations

import sqlite3

from vellumd.store import schema
from vellumd.store.database import read_queries

CHECKS = read_queries("integrity.sql")
"""Queries that count what cannot be, by what they look at."""


def damage(connection: sqlite3.Connection) -> str:
    """What is broken, in a few words for the log; empty if the database is whole.

    Raises `NewerSchemaError`, and `sqlite3.Error` for what cannot even be read. SQLite's
    check of a row takes about 10 µs, that of its seal as much (measured).
    """
    version = schema.version_of(connection)
    found = str(connection.execute("PRAGMA integrity_check(1)").fetchone()[0])
    if found != "ok":
        return found
    if _names(connection) != _expected(version):
        return "the schema is not the one of its version"
    if schema.seal_kept(connection) not in (schema.seal_of(connection), 0):
        return "the schema was changed"
    if version == schema.NEWEST:
        for name, query in CHECKS.items():
            if count := connection.execute(query).fetchone()[0]:
                return f"{name.replace('_', ' ')}: {count}"
    return ""


def _names(connection: sqlite3.Connection) -> set[tuple[str, ...]]:
    return {object[:3] for object in schema.objects(connection)}


def _expected(version: int) -> set[tuple[str, ...]]:
    """What a schema of that version holds."""
    fresh = schema.connect(":memory:")
    try:
        schema.migrate(fresh, version)
        return _names(fresh)
    finally:
        fresh.close()
