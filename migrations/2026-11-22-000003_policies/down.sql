ALTER TABLE projects
    DROP COLUMN session_ttl_ms,
    DROP COLUMN session_ttl_max_ms,
    DROP COLUMN idle_ttl_max_ms,
    DROP COLUMN sessions_max,
    DROP COLUMN sessions_overflow,
    DROP COLUMN default_claims;
