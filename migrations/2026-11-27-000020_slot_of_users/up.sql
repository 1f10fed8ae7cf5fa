-- `migrate` builds the index beforehand, while clients go on writing, unless the table is empty.
ALTER TABLE users ADD COLUMN IF NOT EXISTS slot smallint NOT NULL DEFAULT 0;
CREATE UNIQUE INDEX IF NOT EXISTS users_slot_key ON users (project_id, user_id, slot);
ALTER TABLE users
    DROP CONSTRAINT users_pkey,
    ADD CONSTRAINT users_pkey PRIMARY KEY USING INDEX users_slot_key;
