DELETE FROM sweeps WHERE task = 'writers';
DROP TABLE feed_writers;
DROP INDEX revocations_writer_idx;
ALTER TABLE revocations
    DROP COLUMN seq,
    DROP COLUMN writer,
    ADD COLUMN xid bigint;
ALTER TABLE revocations ALTER COLUMN xid SET DEFAULT (pg_current_xact_id()::text::bigint);
CREATE INDEX revocations_xid_idx ON revocations (xid);
