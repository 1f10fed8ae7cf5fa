-- What a project may set besides: how long impersonations last, what a repeated refresh from elsewhere means, who may
-- refresh, and what a user must show to end other sessions. And what has to be remembered for that: the audit of what ended
-- nothing, a session's last use before the day of its last one, and the repeats of its last refresh.
--
-- The previous release goes on beside it: it neither reads nor writes any of this, and the defaults are what it does, but
-- for impersonations, which it opens for as long as any session. So set these once every server runs this release.

ALTER TABLE projects
    -- How long an impersonation lasts, and the longest that a creator gets: an hour, and a day.
    ADD COLUMN impersonation_ttl_ms bigint NOT NULL DEFAULT 3600000,
    ADD COLUMN impersonation_ttl_max_ms bigint NOT NULL DEFAULT 86400000,
    -- A repeat of a refresh within the grace, from another network or user agent, is theft.
    ADD COLUMN repeat_elsewhere_ends boolean NOT NULL DEFAULT false,
    -- A refresh needs a client that shows a server key.
    ADD COLUMN refresh_needs_client boolean NOT NULL DEFAULT false,
    -- How long ago a user may have authenticated who ends other sessions, and how. Null and empty: that does not matter.
    ADD COLUMN revoke_auth_age_ms bigint,
    ADD COLUMN revoke_acr text[] NOT NULL DEFAULT '{}',
    ADD CONSTRAINT projects_impersonation_ttl_check CHECK (
        impersonation_ttl_ms BETWEEN 1000 AND impersonation_ttl_max_ms AND impersonation_ttl_max_ms <= 31708800000
    ),
    ADD CONSTRAINT projects_revoke_auth_age_check CHECK (revoke_auth_age_ms BETWEEN 1000 AND 31708800000);

ALTER TABLE sessions
    -- When it was last used before the day (UTC) of `last_used_at`; null on the first one. What users are shown goes by it.
    ADD COLUMN used_before_at timestamptz,
    -- How often the last refresh was repeated, and whether from elsewhere.
    ADD COLUMN refresh_repeats smallint NOT NULL DEFAULT 0,
    ADD COLUMN refresh_repeated_elsewhere boolean NOT NULL DEFAULT false;

-- Until when a signature of this key may have either of its two spellings. Null: it never may. The previous release signs
-- without a thought for that, so keys that it may have used are given a day in which every server is brought to this one.
ALTER TABLE signing_keys ADD COLUMN either_s_until timestamptz;
UPDATE signing_keys SET either_s_until = now() + interval '1 day';

-- What is for the audit and for nobody's feed: nothing has ended by it.
CREATE TABLE audit_events (
    project_id text COLLATE "C" NOT NULL,
    -- A UUIDv7: the order of ids is the order of time.
    id uuid NOT NULL,
    at timestamptz NOT NULL,
    -- 1 an impersonation was opened, 2 a refresh was repeated from elsewhere, 3 a key was created, 4 a key takes over,
    -- 5 a key was revoked.
    kind smallint NOT NULL,
    session_id uuid,
    -- Null for what concerns no one user, and once the user was erased.
    user_id text COLLATE "C",
    impersonator_id text,
    -- 1 a signing key, 2 a refresh-token key, 3 a server key.
    key_kind smallint,
    key_id uuid,
    -- As in `revocations`.
    actor smallint NOT NULL,
    actor_id uuid,
    ip text,
    CONSTRAINT audit_events_pkey PRIMARY KEY (project_id, id),
    CONSTRAINT audit_events_subject_check CHECK (
        num_nonnulls(session_id, key_id) = 1 AND (key_id IS NULL) = (key_kind IS NULL)
    ),
    CONSTRAINT audit_events_actor_check CHECK (actor BETWEEN 1 AND 5)
);

-- For whoever erases a user, or asks what was done about one.
CREATE INDEX audit_events_user_idx ON audit_events (project_id, user_id, id) WHERE user_id IS NOT NULL;

ALTER TABLE audit_events SET (autovacuum_vacuum_scale_factor = 0.05, autovacuum_analyze_scale_factor = 0.05);

INSERT INTO sweeps (task) VALUES ('events');
