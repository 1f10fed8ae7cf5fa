-- What every replica, and everyone who verifies tokens, must hear of: the revocations, in an order that can be followed.
-- The previous release goes on beside it: what it writes down gets its transaction's number by default, and is read like
-- all else. It fails to print a line of the audit about a key, which it knows no reason for.

ALTER TABLE revocations
    -- The transaction that wrote it; null in rows from before this. Transactions commit out of order, so a reader goes by
    -- what its snapshot shows.
    ADD COLUMN xid bigint,
    -- Someone else acted as the user in the session that ended: the user does not hear of it.
    ADD COLUMN is_impersonation boolean NOT NULL DEFAULT false,
    -- A signing key that was revoked: nothing under it counts any more.
    ADD COLUMN signing_key_id uuid,
    -- A server key that was revoked: what it listens to ends.
    ADD COLUMN server_key_id uuid,
    DROP CONSTRAINT revocations_kind_check,
    ADD CONSTRAINT revocations_kind_check CHECK (
        num_nonnulls(session_id, user_epoch, project_epoch, signing_key_id, server_key_id) = 1
    );
-- Not with the column: the whole table would be written anew, and nobody could sign out meanwhile. The indexes below keep
-- writers waiting for some two seconds for each million rows.
ALTER TABLE revocations ALTER COLUMN xid SET DEFAULT (pg_current_xact_id()::text::bigint);

-- What is new, for whoever follows.
CREATE INDEX revocations_xid_idx ON revocations (xid);
-- What still matters, for whoever begins to.
CREATE INDEX revocations_access_expires_idx ON revocations (access_expires_at, id);

-- Each replica's sign of life: a reader that sees its own newest one reads a database that takes its writes.
CREATE TABLE feed_beacons (
    replica uuid NOT NULL,
    beat bigint NOT NULL,
    at timestamptz NOT NULL,
    CONSTRAINT feed_beacons_pkey PRIMARY KEY (replica)
);

-- Which history this database tells: a cursor of another one leads nowhere. A restore from backup begins a new one.
CREATE TABLE feed_histories (
    id uuid NOT NULL,
    began_at timestamptz NOT NULL,
    CONSTRAINT feed_histories_pkey PRIMARY KEY (id)
);
INSERT INTO feed_histories VALUES (gen_random_uuid(), now());
