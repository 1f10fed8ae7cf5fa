DROP INDEX revocations_writer_idx;
CREATE UNIQUE INDEX revocations_writer_idx ON revocations (writer, seq) WHERE writer <> 0;
ALTER TABLE revocations
    DROP CONSTRAINT revocations_pkey,
    ADD CONSTRAINT revocations_pkey PRIMARY KEY (project_id, id),
    DROP COLUMN slot;
