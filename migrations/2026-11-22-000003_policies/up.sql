-- What a project may set besides: limits on lifetimes, on the number of sessions, and claims of its own.
-- The previous release goes on beside it: it neither reads nor writes these columns, and the defaults are what it does.

ALTER TABLE projects
    ADD COLUMN session_ttl_ms bigint NOT NULL DEFAULT 31536000000,
    ADD COLUMN session_ttl_max_ms bigint NOT NULL DEFAULT 31708800000,
    ADD COLUMN idle_ttl_max_ms bigint NOT NULL DEFAULT 31708800000,
    -- Null: as many as there are.
    ADD COLUMN sessions_max integer,
    -- What happens to one too many: 1 it is refused, 2 the oldest goes, 3 the one longest unused goes.
    ADD COLUMN sessions_overflow smallint NOT NULL DEFAULT 1,
    ADD COLUMN default_claims jsonb NOT NULL DEFAULT '{}',
    ADD CONSTRAINT projects_session_ttl_check CHECK (
        session_ttl_ms BETWEEN 1000 AND session_ttl_max_ms AND session_ttl_max_ms <= 31708800000
    ),
    ADD CONSTRAINT projects_idle_ttl_max_check CHECK (
        idle_ttl_ms <= idle_ttl_max_ms AND idle_ttl_max_ms <= 31708800000
    ),
    ADD CONSTRAINT projects_sessions_max_check CHECK (sessions_max BETWEEN 1 AND 1000),
    ADD CONSTRAINT projects_sessions_overflow_check CHECK (sessions_overflow BETWEEN 1 AND 3);
