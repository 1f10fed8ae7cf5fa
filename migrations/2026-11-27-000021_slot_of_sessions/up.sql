-- `migrate` builds the index beforehand, while clients go on writing, unless the table is empty.
ALTER TABLE sessions ADD COLUMN IF NOT EXISTS slot smallint NOT NULL DEFAULT 0;
CREATE UNIQUE INDEX IF NOT EXISTS sessions_slot_key ON sessions (project_id, id, slot);
ALTER TABLE sessions
    DROP CONSTRAINT sessions_pkey,
    ADD CONSTRAINT sessions_pkey PRIMARY KEY USING INDEX sessions_slot_key;
