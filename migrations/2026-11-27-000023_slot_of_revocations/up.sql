ALTER TABLE revocations
    ADD COLUMN slot smallint NOT NULL DEFAULT 0,
    DROP CONSTRAINT revocations_pkey,
    ADD CONSTRAINT revocations_pkey PRIMARY KEY (project_id, id, slot);
DROP INDEX revocations_writer_idx;
CREATE UNIQUE INDEX revocations_writer_idx ON revocations (writer, seq, slot) WHERE writer <> 0;
