-- Named queries of retention.py.

-- name: ended
SELECT number, id, ended, resolved,
       EXISTS (SELECT 1 FROM deliveries WHERE job_id = jobs.id
               AND state IN ('waiting', 'pending')) AS owed,
       EXISTS (SELECT 1 FROM deliveries WHERE job_id = jobs.id AND source = jobs.source)
       AND NOT EXISTS (SELECT 1 FROM deliveries WHERE job_id = jobs.id
                       AND state <> 'delivered') AS delivered
FROM jobs
WHERE kept = :kept AND ended IS NOT NULL AND (ended, number) > (:ended, :number)
  AND ended <= :before
ORDER BY ended, number LIMIT :piece;

-- name: lighten
UPDATE jobs SET kept = 'results' WHERE number = ? AND kept = 'all' AND ended IS NOT NULL;

-- name: expire
UPDATE jobs SET kept = 'row', resolved = NULL, meta = 'null', dedupe_key = NULL,
                results = '[]', warnings = '[]'
WHERE number = ? AND kept <> 'row' AND status IN ('done', 'failed', 'cancelled')
  AND NOT EXISTS (SELECT 1 FROM deliveries WHERE job_id = jobs.id
                  AND state IN ('waiting', 'pending'))
RETURNING id;

-- name: old_rows
SELECT id FROM jobs WHERE kept = 'row' AND ended IS NOT NULL AND ended <= :before
ORDER BY ended LIMIT :piece;

-- name: owing
SELECT DISTINCT source FROM deliveries WHERE state = 'pending';

-- name: give_up
UPDATE deliveries SET state = 'undeliverable', code = 'expired'
WHERE number IN (
    SELECT deliveries.number FROM deliveries JOIN jobs ON jobs.id = deliveries.job_id
    WHERE deliveries.state = 'pending' AND deliveries.source = :source AND jobs.ended <= :before
    LIMIT :piece);
