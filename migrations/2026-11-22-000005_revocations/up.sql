-- Who ended what, when, why and from where: the audit, written in the transaction that ends it.
-- The previous release goes on beside it: it ends sessions without a word here, and knows no cut-off but the epoch.

CREATE TABLE revocations (
    project_id text COLLATE "C" NOT NULL,
    -- A UUIDv7: the order of ids is the order of time.
    id uuid NOT NULL,
    at timestamptz NOT NULL,
    reason smallint NOT NULL,
    -- The session that ended. Null for a cut-off, which ends every session of its user, or of the project, that was opened
    -- under an epoch smaller than the one here.
    session_id uuid,
    user_epoch bigint,
    project_epoch bigint,
    -- The one session that a user's cut-off leaves.
    spared_session_id uuid,
    -- Null for a cut-off of the project, and once the user was erased.
    user_id text COLLATE "C",
    -- Until then some verifier may hold a token that this ends.
    access_expires_at timestamptz NOT NULL,
    -- Who did it: 1 a holder of the session's own token, 2 the user from another session, 3 a service, 4 sessiond itself,
    -- 5 the operator. The id is the other session's, or the server key's.
    actor smallint NOT NULL,
    actor_id uuid,
    ip text,
    CONSTRAINT revocations_pkey PRIMARY KEY (project_id, id),
    CONSTRAINT revocations_kind_check CHECK (num_nonnulls(session_id, user_epoch, project_epoch) = 1),
    CONSTRAINT revocations_actor_check CHECK (actor BETWEEN 1 AND 5)
);

-- For whoever erases a user, or asks what was ended of one.
CREATE INDEX revocations_user_idx ON revocations (project_id, user_id, id) WHERE user_id IS NOT NULL;

-- When the epoch was last raised: a session that fell to it shows no time of its own.
ALTER TABLE users ADD COLUMN epoch_raised_at timestamptz;
ALTER TABLE projects
    ADD COLUMN epoch_raised_at timestamptz,
    -- Where the epoch of a new user begins: above that of every user who was forgotten, so that a cut-off of an old one
    -- does not fall on a new one of the same name.
    ADD COLUMN users_epoch_base bigint NOT NULL DEFAULT 0;

-- A request that ended all sessions of a user may be repeated too. It has no session, and an answer to remember.
-- The previous release fails on such a row, which it meets only where a client uses one id for two requests.
ALTER TABLE session_requests
    ALTER COLUMN session_id DROP NOT NULL,
    ADD COLUMN revoked_count integer,
    ADD CONSTRAINT session_requests_answer_check CHECK (num_nonnulls(session_id, revoked_count) = 1);
