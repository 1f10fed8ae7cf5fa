-- `migrate` builds the index beforehand, while clients go on writing, unless the table is empty.
ALTER TABLE revocations ADD COLUMN IF NOT EXISTS slot smallint NOT NULL DEFAULT 0;
CREATE UNIQUE INDEX IF NOT EXISTS revocations_slot_key ON revocations (project_id, id, slot);
ALTER TABLE revocations
    DROP CONSTRAINT revocations_pkey,
    ADD CONSTRAINT revocations_pkey PRIMARY KEY USING INDEX revocations_slot_key;
CREATE UNIQUE INDEX IF NOT EXISTS revocations_writer_slot_idx ON revocations (writer, seq, slot) WHERE writer <> 0;
DROP INDEX revocations_writer_idx;
ALTER INDEX revocations_writer_slot_idx RENAME TO revocations_writer_idx;
