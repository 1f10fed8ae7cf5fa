-- The feed is ordered by writer and number in place of transaction ids, which mean nothing outside of one server.
--
-- The previous release does not run beside this one: its sign-outs fail, because they name no writer, and its feed cannot be
-- read. So stop every server, migrate, and start this release; or accept failing sign-outs until the last server is replaced.
-- Nothing is ended without an entry that this release reads.

ALTER TABLE revocations
    -- The writer, and its number for this row: 1 for the first, without gaps. Zero in rows from before, which are read by
    -- expiry. The defaults are for those rows only, which are not rewritten: a new row must name a writer.
    ADD COLUMN writer bigint NOT NULL DEFAULT 0,
    ADD COLUMN seq integer NOT NULL DEFAULT 0;
ALTER TABLE revocations
    ALTER COLUMN writer DROP DEFAULT,
    ALTER COLUMN seq DROP DEFAULT;
-- Drops its index too.
ALTER TABLE revocations DROP COLUMN xid;

-- What is new of each writer. Unique: no number is used twice.
CREATE UNIQUE INDEX revocations_writer_idx ON revocations (writer, seq) WHERE writer <> 0;

-- Each database connection that has written revocations. A row is locked (FOR SHARE) by every transaction that uses a number,
-- and closed under a stronger lock, so that no transaction in progress is overlooked.
CREATE TABLE feed_writers (
    -- Random, below 2^48; never used by another connection.
    id bigint NOT NULL,
    opened_at timestamptz NOT NULL,
    -- The last number, once no more are accepted.
    last integer,
    closed_at timestamptz,
    CONSTRAINT feed_writers_pkey PRIMARY KEY (id),
    CONSTRAINT feed_writers_id_check CHECK (id > 0),
    CONSTRAINT feed_writers_closed_check CHECK ((last IS NULL) = (closed_at IS NULL))
);

INSERT INTO sweeps (task) VALUES ('writers');
