DELETE FROM sweeps WHERE task = 'events';

DROP TABLE audit_events;

ALTER TABLE signing_keys DROP COLUMN either_s_until;

ALTER TABLE sessions
    DROP COLUMN used_before_at,
    DROP COLUMN refresh_repeats,
    DROP COLUMN refresh_repeated_elsewhere;

ALTER TABLE projects
    DROP CONSTRAINT projects_impersonation_ttl_check,
    DROP CONSTRAINT projects_revoke_auth_age_check,
    DROP COLUMN impersonation_ttl_ms,
    DROP COLUMN impersonation_ttl_max_ms,
    DROP COLUMN repeat_elsewhere_ends,
    DROP COLUMN refresh_needs_client,
    DROP COLUMN revoke_auth_age_ms,
    DROP COLUMN revoke_acr;
