-- Sessions, the epoch of each user, and the requests that may be repeated.
-- Nothing runs before it but the previous migration, which knows none of these tables.
--
-- No foreign key leads from here to `projects`: every insert would lock that one row, for a project that is never deleted
-- while it has sessions. None leads to `users` either: its rows come and go with the users' sessions.

CREATE TABLE users (
    project_id text COLLATE "C" NOT NULL,
    user_id text COLLATE "C" NOT NULL,
    -- Raising it ends every session of the user that was opened under a smaller one.
    epoch bigint NOT NULL,
    CONSTRAINT users_pkey PRIMARY KEY (project_id, user_id)
);

CREATE TABLE sessions (
    project_id text COLLATE "C" NOT NULL,
    id uuid NOT NULL,
    user_id text COLLATE "C" NOT NULL,
    project_epoch bigint NOT NULL,
    user_epoch bigint NOT NULL,
    created_at timestamptz NOT NULL,
    last_used_at timestamptz NOT NULL,
    expires_at timestamptz NOT NULL,
    idle_ttl_ms bigint NOT NULL,
    idle_expires_at timestamptz NOT NULL,
    -- The greatest `exp` of an access token issued: until then its end is news to whoever verifies tokens offline.
    access_expires_at timestamptz NOT NULL,
    revoked_at timestamptz,
    revoke_reason smallint,
    -- The chain of refresh tokens: the head's generation, and of the last generations the attempt that was adopted and
    -- the moment of issue, the head's last. Tokens themselves are nowhere: the secret below and a key make them.
    refresh_secret bytea NOT NULL,
    refresh_generation bigint NOT NULL,
    refresh_attempts bigint[] NOT NULL,
    refresh_issued_at timestamptz[] NOT NULL,
    impersonator_id text,
    auth_time timestamptz,
    acr text,
    amr text[] NOT NULL,
    device_name text,
    user_agent text,
    ip text,
    labels jsonb NOT NULL,
    claims jsonb NOT NULL,
    CONSTRAINT sessions_pkey PRIMARY KEY (project_id, id),
    CONSTRAINT sessions_revoked_check CHECK ((revoked_at IS NULL) = (revoke_reason IS NULL)),
    CONSTRAINT sessions_refresh_secret_check CHECK (octet_length(refresh_secret) = 32),
    CONSTRAINT sessions_refresh_chain_check CHECK (
        cardinality(refresh_attempts) BETWEEN 1 AND 64
        AND cardinality(refresh_attempts) = cardinality(refresh_issued_at)
    )
) WITH (
    -- Refresh and sign-out change no indexed column: with room on the page they touch no index either (HOT).
    fillfactor = 80
);

-- A user's sessions, newest first: ids are UUIDv7, so their order is the order of time.
CREATE INDEX sessions_user_idx ON sessions (project_id, user_id, id DESC);

-- What a `request_id` was used for (AIP-155).
CREATE TABLE session_requests (
    project_id text COLLATE "C" NOT NULL,
    request_id uuid NOT NULL,
    session_id uuid NOT NULL,
    -- SHA-256 of the request, to tell a repeat from another request under the same id.
    digest bytea NOT NULL,
    created_at timestamptz NOT NULL,
    CONSTRAINT session_requests_pkey PRIMARY KEY (project_id, request_id),
    CONSTRAINT session_requests_digest_check CHECK (octet_length(digest) = 32)
);

-- The oldest first, for whoever sweeps them.
CREATE INDEX session_requests_created_idx ON session_requests (project_id, created_at);
