-- What a job still has: all, results (its inputs are gone) or row (its folder is gone).
ALTER TABLE jobs ADD COLUMN kept TEXT NOT NULL DEFAULT 'all'
    CHECK (kept IN ('all', 'results', 'row'));
CREATE INDEX jobs_ended ON jobs (kept, ended, number) WHERE ended IS NOT NULL;

-- Each job and delivery bears a hash of itself, so that damage which leaves the pages
-- whole is seen too. A later column joins by making the two triggers anew.
ALTER TABLE jobs ADD COLUMN seal TEXT;
ALTER TABLE deliveries ADD COLUMN seal TEXT;

CREATE TRIGGER seal_new_job AFTER INSERT ON jobs
BEGIN
    UPDATE jobs SET seal = row_hash(
        id, status, lane, priority, requeued, source, client_id, batch, dedupe_key, digest,
        resolved, meta, retry_of, created, started, ended, attempt, engine_deaths, daemon_deaths,
        cancel_requested, results, elapsed_s, warnings, error, kept, client)
    WHERE number = NEW.number;
END;
CREATE TRIGGER seal_job AFTER UPDATE OF
    id, status, lane, priority, requeued, source, client_id, batch, dedupe_key, digest,
    resolved, meta, retry_of, created, started, ended, attempt, engine_deaths, daemon_deaths,
    cancel_requested, results, elapsed_s, warnings, error, kept, client ON jobs
BEGIN
    UPDATE jobs SET seal = row_hash(
        id, status, lane, priority, requeued, source, client_id, batch, dedupe_key, digest,
        resolved, meta, retry_of, created, started, ended, attempt, engine_deaths, daemon_deaths,
        cancel_requested, results, elapsed_s, warnings, error, kept, client)
    WHERE number = NEW.number;
END;
CREATE TRIGGER seal_new_delivery AFTER INSERT ON deliveries
BEGIN
    UPDATE deliveries SET seal = row_hash(job_id, source, reply, state, code, attempts, due)
    WHERE number = NEW.number;
END;
CREATE TRIGGER seal_delivery AFTER UPDATE OF job_id, source, reply, state, code, attempts, due
    ON deliveries
BEGIN
    UPDATE deliveries SET seal = row_hash(job_id, source, reply, state, code, attempts, due)
    WHERE number = NEW.number;
END;
UPDATE jobs SET kept = kept;
UPDATE deliveries SET state = state;
