-- Named queries of integrity.py: each counts what a whole database has none of.

-- name: torn_jobs
SELECT count(*) FROM jobs WHERE seal IS NOT row_hash(
    id, status, lane, priority, requeued, source, client_id, batch, dedupe_key, digest,
    resolved, meta, retry_of, created, started, ended, attempt, engine_deaths, daemon_deaths,
    cancel_requested, results, elapsed_s, warnings, error, kept, client);

-- name: torn_deliveries
SELECT count(*) FROM deliveries
WHERE seal IS NOT row_hash(job_id, source, reply, state, code, attempts, due);

-- name: torn_events
SELECT count(*) FROM events
WHERE NOT json_valid(data) OR type NOT IN ('queued', 'started', 'done', 'failed', 'cancelled');

-- name: foreign_deliveries
SELECT count(*) FROM deliveries WHERE job_id NOT IN (SELECT id FROM jobs);

-- name: wrong_tallies
SELECT count(*) FROM tally
WHERE jobs <> (SELECT count(*) FROM jobs WHERE jobs.status = tally.status);

-- name: missing_tallies
SELECT 5 - count(*) FROM tally;

-- name: runaway_counters
SELECT count(*) FROM sqlite_sequence WHERE typeof(seq) <> 'integer' OR seq >= 1 << 53;

-- name: wrong_turns
SELECT count(*) FROM (
    SELECT lane, priority, source, client, waiting FROM turns
    EXCEPT SELECT lane, priority, source, client, count(*) FROM jobs
    WHERE status = 'queued' GROUP BY 1, 2, 3, 4);

-- name: missing_turns
SELECT count(*) FROM (
    SELECT lane, priority, source, client, count(*) FROM jobs
    WHERE status = 'queued' GROUP BY 1, 2, 3, 4
    EXCEPT SELECT lane, priority, source, client, waiting FROM turns);

-- name: runaway_turns
SELECT count(*) FROM turns WHERE abs(turn) >= 1 << 53;
