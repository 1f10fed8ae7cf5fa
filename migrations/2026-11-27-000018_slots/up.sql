-- The slot of every row about a user: which part of a divided database it is in. It follows from the user's bucket, which
-- a session id contains. One Postgres has one slot, 0.
--
-- The slot is the last column of each key: a row is still found without it, and a divided database routes by it.
-- The previous release goes on beside this one: it names no slot, and the default is the only one there is.

-- The slots that there are: 0 alone, or 1 and up in a divided database. A row of each leads a statement to its node.
CREATE TABLE slots (
    slot smallint NOT NULL,
    CONSTRAINT slots_pkey PRIMARY KEY (slot),
    CONSTRAINT slots_slot_check CHECK (slot BETWEEN 0 AND 4096)
);
INSERT INTO slots VALUES (0);

ALTER TABLE users
    ADD COLUMN slot smallint NOT NULL DEFAULT 0,
    DROP CONSTRAINT users_pkey,
    ADD CONSTRAINT users_pkey PRIMARY KEY (project_id, user_id, slot);
ALTER TABLE sessions
    ADD COLUMN slot smallint NOT NULL DEFAULT 0,
    DROP CONSTRAINT sessions_pkey,
    ADD CONSTRAINT sessions_pkey PRIMARY KEY (project_id, id, slot);
-- A request's user decides, so in a divided database a request id is unique for each user only.
ALTER TABLE session_requests
    ADD COLUMN slot smallint NOT NULL DEFAULT 0,
    DROP CONSTRAINT session_requests_pkey,
    ADD CONSTRAINT session_requests_pkey PRIMARY KEY (project_id, request_id, slot);
ALTER TABLE revocations
    ADD COLUMN slot smallint NOT NULL DEFAULT 0,
    DROP CONSTRAINT revocations_pkey,
    ADD CONSTRAINT revocations_pkey PRIMARY KEY (project_id, id, slot);
ALTER TABLE audit_events
    ADD COLUMN slot smallint NOT NULL DEFAULT 0,
    DROP CONSTRAINT audit_events_pkey,
    ADD CONSTRAINT audit_events_pkey PRIMARY KEY (project_id, id, slot);
ALTER TABLE backchannel_deliveries
    ADD COLUMN slot smallint NOT NULL DEFAULT 0,
    DROP CONSTRAINT backchannel_deliveries_pkey,
    ADD CONSTRAINT backchannel_deliveries_pkey PRIMARY KEY (project_id, id, slot);
-- A writer writes to one slot: in one transaction with its entries, on one node.
ALTER TABLE feed_writers
    ADD COLUMN slot smallint NOT NULL DEFAULT 0,
    DROP CONSTRAINT feed_writers_pkey,
    ADD CONSTRAINT feed_writers_pkey PRIMARY KEY (id, slot);
DROP INDEX revocations_writer_idx;
CREATE UNIQUE INDEX revocations_writer_idx ON revocations (writer, seq, slot) WHERE writer <> 0;
