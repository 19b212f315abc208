-- Named queries of rebuild.py.

-- name: resume_all
DELETE FROM paused;

-- name: known
SELECT id FROM jobs;

-- name: not_ended
SELECT * FROM jobs WHERE status IN ('queued', 'running') ORDER BY number;

-- name: end
UPDATE jobs SET status = :status, started = :started, ended = :ended, results = :results,
                elapsed_s = :elapsed_s, warnings = :warnings, error = :error,
                attempt = max(attempt, 1)
WHERE id = :id AND status IN ('queued', 'running');

-- name: forget_seq
DELETE FROM sqlite_sequence WHERE name = 'events';

-- name: set_seq
INSERT INTO sqlite_sequence (name, seq) VALUES ('events', ?);
