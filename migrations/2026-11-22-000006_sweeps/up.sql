-- How far the sweep has come, for all replicas together.
-- The previous release goes on beside it: it sweeps nothing, and knows no such table.

CREATE TABLE sweeps (
    task text COLLATE "C" NOT NULL,
    -- The last key that was looked at; a pass begins with empty ones.
    project_id text COLLATE "C" NOT NULL DEFAULT '',
    key text COLLATE "C" NOT NULL DEFAULT '',
    -- When the last pass came to the end of the table.
    completed_at timestamptz,
    CONSTRAINT sweeps_pkey PRIMARY KEY (task)
) WITH (
    -- Each step changes its row: with room on the page, dead versions make way at once, and no index hears of it (HOT).
    fillfactor = 10
);

-- Whoever takes a step holds the row of its task; the others pass it over.
INSERT INTO sweeps (task) VALUES ('sessions'), ('requests'), ('revocations'), ('users'), ('keys');

-- By default Postgres cleans up once a fifth of a table is dead: of ten million rows, two. Until then every page that was
-- emptied stays in the way of whoever reads a range, and no new row can use it. A twentieth keeps that short, and is
-- still so much that the indexes, which each cleaning reads as a whole, are not read all the time.
ALTER TABLE sessions SET (autovacuum_vacuum_scale_factor = 0.05, autovacuum_analyze_scale_factor = 0.05);
ALTER TABLE users SET (autovacuum_vacuum_scale_factor = 0.05, autovacuum_analyze_scale_factor = 0.05);
ALTER TABLE revocations SET (autovacuum_vacuum_scale_factor = 0.05, autovacuum_analyze_scale_factor = 0.05);
