-- `migrate` builds the index beforehand, while clients go on writing, unless the table is empty.
ALTER TABLE audit_events ADD COLUMN IF NOT EXISTS slot smallint NOT NULL DEFAULT 0;
CREATE UNIQUE INDEX IF NOT EXISTS audit_events_slot_key ON audit_events (project_id, id, slot);
ALTER TABLE audit_events
    DROP CONSTRAINT audit_events_pkey,
    ADD CONSTRAINT audit_events_pkey PRIMARY KEY USING INDEX audit_events_slot_key;
