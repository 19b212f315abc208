CREATE TABLE IF NOT EXISTS jobs (
    number INTEGER PRIMARY KEY,
    id TEXT NOT NULL UNIQUE,
    body TEXT NOT NULL,
    created REAL NOT NULL,
    leased_until REAL NOT NULL DEFAULT 0,
    worker TEXT NOT NULL DEFAULT '',
    times_given INTEGER NOT NULL DEFAULT 0,
    status TEXT NOT NULL DEFAULT 'waiting' CHECK (status IN ('waiting', 'done', 'failed')),
    result BLOB
);
CREATE INDEX IF NOT EXISTS waiting ON jobs (leased_until, number) WHERE status = 'waiting';
CREATE TABLE IF NOT EXISTS ledger (
    number INTEGER PRIMARY KEY,
    at REAL NOT NULL,
    job TEXT NOT NULL,
    what TEXT NOT NULL CHECK (what IN ('given', 'accepted', 'repeated', 'unknown')),
    sha256 TEXT NOT NULL
);
CREATE TABLE IF NOT EXISTS faults (
    kind TEXT PRIMARY KEY,
    times INTEGER NOT NULL
);
