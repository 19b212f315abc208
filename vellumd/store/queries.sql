-- Named queries of store.py. Every change of status is guarded by the old status.

-- name: add
INSERT INTO jobs (id, lane, priority, source, client_id, client, batch, dedupe_key, digest,
                  resolved, meta, retry_of, created, warnings)
VALUES (:id, :lane, :priority, :source, :client_id, ifnull(:client_id, ''), :batch, :dedupe_key,
        :digest, :resolved, :meta, :retry_of, :created, :warnings)
ON CONFLICT DO NOTHING RETURNING *;

-- name: get
SELECT * FROM jobs WHERE id = ?;

-- name: by_key
SELECT * FROM jobs WHERE source = ? AND dedupe_key = ?;

-- name: tally
SELECT status, jobs FROM tally;

-- name: list
SELECT * FROM jobs
WHERE (:status IS NULL OR status = :status)
  AND (:source IS NULL OR source = :source)
  AND (:batch IS NULL OR batch = :batch)
  AND (:client_id IS NULL OR client_id = :client_id)
  AND number < :before
ORDER BY number DESC
LIMIT :limit;

-- name: list_status
SELECT * FROM jobs
WHERE status = :status
  AND (:source IS NULL OR source = :source)
  AND (:batch IS NULL OR batch = :batch)
  AND (:client_id IS NULL OR client_id = :client_id)
  AND number < :before
ORDER BY number DESC
LIMIT :limit;

-- name: place
SELECT count(*) FROM jobs
WHERE status = 'queued' AND lane = :lane AND priority = :priority AND source = :source
  AND client = :client
  AND (requeued > :requeued OR (requeued = :requeued AND number <= :number));

-- name: ahead
-- Of the job in the given place of its owner's: all of higher priority, and as many of each
-- other owner as have their turn before it has its own for the `place`th time.
SELECT sum(CASE WHEN other.priority > own.priority THEN other.waiting
           ELSE min(other.waiting, ifnull(:place, own.waiting) - (other.turn >= own.turn)) END)
FROM turns AS own JOIN turns AS other
  ON other.lane = own.lane AND other.priority >= own.priority
WHERE own.lane = :lane AND own.priority = :priority AND own.source = :source
  AND own.client = :client;

-- name: positions
SELECT number, position FROM (
    SELECT number, row_number() OVER (ORDER BY priority DESC, place, turn) - 1 AS position FROM (
        SELECT jobs.number, jobs.priority, turn, row_number() OVER (
            PARTITION BY jobs.priority, jobs.source, jobs.client
            ORDER BY requeued DESC, jobs.number) AS place
        FROM jobs JOIN turns USING (lane, priority, source, client)
        WHERE status = 'queued' AND lane = :lane))
WHERE number BETWEEN :first AND :last;

-- name: has_queued
SELECT EXISTS (SELECT 1 FROM turns WHERE lane = ?);

-- name: claim
UPDATE jobs SET status = 'running', started = :now, attempt = attempt + 1
WHERE status = 'queued' AND :lane NOT IN (SELECT lane FROM paused) AND number = (
    SELECT number FROM jobs
    WHERE status = 'queued' AND (lane, priority, source, client) = (
        SELECT lane, priority, source, client FROM turns
        WHERE lane = :lane ORDER BY priority DESC, turn LIMIT 1)
    ORDER BY requeued DESC, number LIMIT 1)
RETURNING *;

-- name: done
UPDATE jobs SET status = 'done', ended = :now, results = :results, elapsed_s = :elapsed_s,
                warnings = :warnings
WHERE id = :id AND status = 'running' RETURNING *;

-- name: failed
UPDATE jobs SET status = 'failed', ended = :now, error = :error, warnings = :warnings
WHERE id = :id AND status = 'running' RETURNING *;

-- name: cancelled
UPDATE jobs SET status = 'cancelled', ended = :now, cancel_requested = 1
WHERE id = :id AND (status = 'queued' OR (status = 'running' AND :running)) RETURNING *;

-- name: request_cancel
UPDATE jobs SET cancel_requested = 1 WHERE id = ? AND status = 'running' RETURNING *;

-- name: requeue
UPDATE jobs SET status = 'queued', requeued = 1, attempt = attempt - :untried,
                engine_deaths = engine_deaths + :engine_deaths,
                daemon_deaths = daemon_deaths + :daemon_deaths
WHERE id = :id AND status = 'running' RETURNING *;

-- name: set_priority
UPDATE jobs SET priority = :priority, resolved = json_set(resolved, '$.priority', :priority)
WHERE id = :id AND status = 'queued' RETURNING *;

-- name: pause
INSERT OR IGNORE INTO paused (lane) VALUES (?);

-- name: resume
DELETE FROM paused WHERE lane = ?;

-- name: paused
SELECT lane FROM paused;

-- name: is_paused
SELECT count(*) FROM paused WHERE lane = ?;

-- name: forget
DELETE FROM jobs WHERE id = ? AND status IN ('done', 'failed', 'cancelled');

-- name: waiting
SELECT id, created FROM jobs WHERE status = 'queued' ORDER BY number;

-- name: running
SELECT * FROM jobs WHERE status = 'running';

-- name: ids
SELECT id FROM jobs WHERE resolved IS NOT NULL;

-- name: add_event
INSERT INTO events (job_id, type, at, data) VALUES (?, ?, ?, ?);

-- name: forget_events
DELETE FROM events WHERE job_id = ?;

-- name: events
SELECT * FROM events WHERE seq > :since ORDER BY seq LIMIT :limit;

-- name: job_events
SELECT * FROM events WHERE job_id = :job_id AND seq > :since ORDER BY seq LIMIT :limit;

-- name: last_seq
SELECT coalesce(max(seq), 0) FROM sqlite_sequence WHERE name = 'events';

-- name: add_delivery
INSERT OR IGNORE INTO deliveries (job_id, source, reply, state) VALUES (?, ?, ?, ?);

-- name: owe_again
-- A row with a number of its own: what is still being sent for the asking before settles nothing
-- of this one.
INSERT OR REPLACE INTO deliveries (job_id, source, reply, state)
VALUES (:job_id, :source, :reply, :state);

-- name: release_deliveries
UPDATE deliveries SET state = 'pending' WHERE job_id = ? AND state = 'waiting';

-- name: forget_deliveries
DELETE FROM deliveries WHERE job_id = ?;

-- name: owed
SELECT count(*) FROM deliveries JOIN jobs ON jobs.id = job_id AND jobs.source = deliveries.source
WHERE job_id = ? AND state IN ('waiting', 'pending');

-- name: pending_deliveries
SELECT * FROM deliveries WHERE source = ? AND state = 'pending' ORDER BY due, number LIMIT ?;

-- name: settle_delivery
UPDATE deliveries SET state = :state, code = :code, due = :due, attempts = attempts + 1
WHERE number = :number AND state = 'pending';
