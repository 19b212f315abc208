-- With the source, whose job it is: client_id or folder; '' without one.
ALTER TABLE jobs ADD COLUMN client TEXT NOT NULL DEFAULT '';
UPDATE jobs SET client = client_id WHERE client_id IS NOT NULL;

-- Who is next: within a priority, those who wait take turns, each with its oldest job.
-- One row for everyone who has jobs waiting, kept by the triggers below. The least `turn`
-- is next; a claim sends its owner to the back, and who joins stands there too.
CREATE TABLE turns (
    lane     INTEGER NOT NULL,
    priority INTEGER NOT NULL,
    source   TEXT    NOT NULL,
    client   TEXT    NOT NULL,
    waiting  INTEGER NOT NULL,  -- jobs
    turn     INTEGER NOT NULL,
    PRIMARY KEY (lane, priority, source, client)
) STRICT, WITHOUT ROWID;
CREATE INDEX turns_next ON turns (lane, priority DESC, turn);

DROP INDEX jobs_queue;
CREATE INDEX jobs_queue ON jobs (lane, priority, source, client, requeued DESC, number, status)
    WHERE status = 'queued';

INSERT INTO turns
SELECT lane, priority, source, client, count(*),
       row_number() OVER (ORDER BY max(requeued) DESC, min(number))
FROM jobs WHERE status = 'queued' GROUP BY 1, 2, 3, 4;

CREATE TRIGGER turns_join AFTER INSERT ON jobs WHEN NEW.status = 'queued'
BEGIN
    INSERT INTO turns VALUES (
        NEW.lane, NEW.priority, NEW.source, NEW.client, 1,
        (SELECT ifnull(max(turn), 0) + 1 FROM turns
         WHERE lane = NEW.lane AND priority = NEW.priority))
    ON CONFLICT (lane, priority, source, client) DO UPDATE SET waiting = waiting + 1;
END;

-- What was running goes on before all others of its priority: its owner has the turn again.
CREATE TRIGGER turns_rejoin AFTER UPDATE OF status ON jobs
WHEN NEW.status = 'queued' AND OLD.status <> 'queued'
BEGIN
    INSERT INTO turns VALUES (
        NEW.lane, NEW.priority, NEW.source, NEW.client, 1,
        (SELECT ifnull(min(turn), 0) - 1 FROM turns
         WHERE lane = NEW.lane AND priority = NEW.priority))
    ON CONFLICT (lane, priority, source, client)
    DO UPDATE SET waiting = waiting + 1, turn = excluded.turn;
END;

CREATE TRIGGER turns_leave AFTER UPDATE OF status ON jobs
WHEN OLD.status = 'queued' AND NEW.status <> 'queued'
BEGIN
    UPDATE turns SET waiting = waiting - 1, turn = CASE WHEN NEW.status = 'running'
        THEN (SELECT max(turn) + 1 FROM turns
              WHERE lane = OLD.lane AND priority = OLD.priority)
        ELSE turn END
    WHERE lane = OLD.lane AND priority = OLD.priority AND source = OLD.source
      AND client = OLD.client;
    DELETE FROM turns
    WHERE lane = OLD.lane AND priority = OLD.priority AND source = OLD.source
      AND client = OLD.client AND waiting = 0;
END;

CREATE TRIGGER turns_move AFTER UPDATE OF priority ON jobs
WHEN NEW.status = 'queued' AND NEW.priority <> OLD.priority
BEGIN
    UPDATE turns SET waiting = waiting - 1
    WHERE lane = OLD.lane AND priority = OLD.priority AND source = OLD.source
      AND client = OLD.client;
    DELETE FROM turns
    WHERE lane = OLD.lane AND priority = OLD.priority AND source = OLD.source
      AND client = OLD.client AND waiting = 0;
    INSERT INTO turns VALUES (
        NEW.lane, NEW.priority, NEW.source, NEW.client, 1,
        (SELECT ifnull(max(turn), 0) + 1 FROM turns
         WHERE lane = NEW.lane AND priority = NEW.priority))
    ON CONFLICT (lane, priority, source, client) DO UPDATE SET waiting = waiting + 1;
END;

-- Lanes that start no job until somebody resumes them, over restarts too.
CREATE TABLE paused (lane INTEGER PRIMARY KEY) STRICT;
