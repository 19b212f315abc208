-- One row a job. `number` orders by age, whatever the clock does.
CREATE TABLE jobs (
    number           INTEGER PRIMARY KEY AUTOINCREMENT,
    id               TEXT    NOT NULL UNIQUE,
    status           TEXT    NOT NULL DEFAULT 'queued'
                     CHECK (status IN ('queued', 'running', 'done', 'failed', 'cancelled')),
    lane             INTEGER NOT NULL DEFAULT 0,
    priority         INTEGER NOT NULL DEFAULT 0,
    requeued         INTEGER NOT NULL DEFAULT 0,  -- 1: was running, goes first again
    source           TEXT    NOT NULL,
    client_id        TEXT,
    batch            TEXT,
    dedupe_key       TEXT,
    digest           TEXT    NOT NULL,            -- of the request as asked
    resolved         TEXT,                        -- JSON ResolvedEdit; null once expired
    meta             TEXT    NOT NULL DEFAULT 'null',
    retry_of         TEXT,
    created          INTEGER NOT NULL,            -- milliseconds since the epoch, to read only
    started          INTEGER,
    ended            INTEGER,
    attempt          INTEGER NOT NULL DEFAULT 0,
    engine_deaths    INTEGER NOT NULL DEFAULT 0,
    daemon_deaths    INTEGER NOT NULL DEFAULT 0,
    cancel_requested INTEGER NOT NULL DEFAULT 0,
    results          TEXT    NOT NULL DEFAULT '[]',
    elapsed_s        REAL,
    warnings         TEXT    NOT NULL DEFAULT '[]',
    error            TEXT
) STRICT;

CREATE UNIQUE INDEX jobs_dedupe ON jobs (source, dedupe_key) WHERE dedupe_key IS NOT NULL;
CREATE INDEX jobs_queue ON jobs (lane, priority DESC, requeued DESC, number, status)
    WHERE status = 'queued';
CREATE INDEX jobs_running ON jobs (number) WHERE status = 'running';
CREATE INDEX jobs_status ON jobs (status, number);
CREATE INDEX jobs_batch ON jobs (batch, number) WHERE batch IS NOT NULL;

-- How many jobs have each status, kept by the triggers: counting rows would cost more
-- the more wait.
CREATE TABLE tally (status TEXT PRIMARY KEY, jobs INTEGER NOT NULL) STRICT, WITHOUT ROWID;
INSERT INTO tally VALUES
    ('queued', 0), ('running', 0), ('done', 0), ('failed', 0), ('cancelled', 0);
CREATE TRIGGER tally_insert AFTER INSERT ON jobs
BEGIN
    UPDATE tally SET jobs = jobs + 1 WHERE status = NEW.status;
END;
CREATE TRIGGER tally_update AFTER UPDATE OF status ON jobs
BEGIN
    UPDATE tally SET jobs = jobs - 1 WHERE status = OLD.status;
    UPDATE tally SET jobs = jobs + 1 WHERE status = NEW.status;
END;
CREATE TRIGGER tally_delete AFTER DELETE ON jobs
BEGIN
    UPDATE tally SET jobs = jobs - 1 WHERE status = OLD.status;
END;

-- What has ended stays as it ended (I2), whatever the code above does.
CREATE TRIGGER terminal_absorbs BEFORE UPDATE OF status ON jobs
WHEN OLD.status IN ('done', 'failed', 'cancelled') AND NEW.status <> OLD.status
BEGIN
    SELECT RAISE(ABORT, 'a job that has ended cannot change');
END;

CREATE TABLE events (
    seq    INTEGER PRIMARY KEY AUTOINCREMENT,
    job_id TEXT    NOT NULL,
    type   TEXT    NOT NULL,
    at     INTEGER NOT NULL,
    data   TEXT    NOT NULL DEFAULT '{}'
) STRICT;
CREATE INDEX events_job ON events (job_id, seq);

-- What a transport owes a sender. `reply` is private to the transport.
CREATE TABLE deliveries (
    number   INTEGER PRIMARY KEY AUTOINCREMENT,
    job_id   TEXT    NOT NULL REFERENCES jobs (id),
    source   TEXT    NOT NULL,
    reply    TEXT    NOT NULL,
    state    TEXT    NOT NULL DEFAULT 'waiting'
             CHECK (state IN ('waiting', 'pending', 'delivered', 'undeliverable')),
    code     TEXT,
    attempts INTEGER NOT NULL DEFAULT 0,
    due      INTEGER NOT NULL DEFAULT 0,
    UNIQUE (job_id, source, reply)
) STRICT;
CREATE INDEX deliveries_pending ON deliveries (source, due, number) WHERE state = 'pending';
