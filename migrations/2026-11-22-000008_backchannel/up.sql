-- Whom to tell that a session has ended, and what is still to be told: a transactional outbox.
-- The previous release goes on beside it: what it ends is told to nobody, so endpoints are for when every server runs this
-- release.
--
-- No foreign key leads from deliveries to endpoints: every sign-out would lock the endpoint's row.

CREATE TABLE backchannel_endpoints (
    project_id text COLLATE "C" NOT NULL,
    id uuid NOT NULL,
    -- 1 OpenID Connect back-channel logout, 2 CAEP over RFC 8935.
    kind smallint NOT NULL,
    url text NOT NULL,
    -- The `aud` of what is sent there.
    audience text NOT NULL,
    created_at timestamptz NOT NULL,
    -- From then on nothing is sent there. The row stays for as long as a delivery names it.
    removed_at timestamptz,
    CONSTRAINT backchannel_endpoints_pkey PRIMARY KEY (project_id, id),
    CONSTRAINT backchannel_endpoints_kind_check CHECK (kind BETWEEN 1 AND 2)
);

-- For the sweep.
CREATE INDEX backchannel_endpoints_removed_idx ON backchannel_endpoints (removed_at) WHERE removed_at IS NOT NULL;

-- One row per end and endpoint, written in the transaction that ends it.
CREATE TABLE backchannel_deliveries (
    project_id text COLLATE "C" NOT NULL,
    -- A UUIDv7: the order of ids is the order of time. It is the `jti` of every attempt.
    id uuid NOT NULL,
    endpoint_id uuid NOT NULL,
    -- The line of the audit, which several endpoints are told of.
    revocation_id uuid NOT NULL,
    -- Null for a cut-off that ended every session of its user.
    session_id uuid,
    -- Null once it was delivered and, when the user was erased, once nothing more is tried.
    user_id text COLLATE "C",
    -- The user was erased: the name goes as soon as it is not needed any more.
    user_erased boolean NOT NULL DEFAULT false,
    at timestamptz NOT NULL,
    reason smallint NOT NULL,
    actor smallint NOT NULL,
    actor_id uuid,
    -- Since when it is tried: when it was written, or when an operator last said to try again.
    queued_at timestamptz NOT NULL,
    -- When it is tried next. While an attempt is under way that is when it counts as lost; null when nothing more is tried.
    due_at timestamptz,
    attempts integer NOT NULL DEFAULT 0,
    -- What became of the last attempt, in a word or two of our own.
    last_error text,
    delivered_at timestamptz,
    dead_at timestamptz,
    CONSTRAINT backchannel_deliveries_pkey PRIMARY KEY (project_id, id),
    CONSTRAINT backchannel_deliveries_state_check CHECK (num_nonnulls(due_at, delivered_at, dead_at) = 1),
    CONSTRAINT backchannel_deliveries_actor_check CHECK (actor BETWEEN 1 AND 5)
);

-- What is due, endpoint by endpoint: one that does not answer has the others wait for nothing.
CREATE INDEX backchannel_deliveries_due_idx ON backchannel_deliveries (project_id, endpoint_id, due_at)
    WHERE due_at IS NOT NULL;

-- What is not delivered, for the operator.
CREATE INDEX backchannel_deliveries_open_idx ON backchannel_deliveries (project_id, id) WHERE delivered_at IS NULL;

-- For whoever erases a user.
CREATE INDEX backchannel_deliveries_user_idx ON backchannel_deliveries (project_id, user_id, id) WHERE user_id IS NOT NULL;

-- A queue is mostly dead rows: they make way early.
ALTER TABLE backchannel_deliveries SET (autovacuum_vacuum_scale_factor = 0.05, autovacuum_analyze_scale_factor = 0.05);

INSERT INTO sweeps (task) VALUES ('deliveries');
