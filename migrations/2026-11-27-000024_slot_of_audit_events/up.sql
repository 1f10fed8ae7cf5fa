ALTER TABLE audit_events
    ADD COLUMN slot smallint NOT NULL DEFAULT 0,
    DROP CONSTRAINT audit_events_pkey,
    ADD CONSTRAINT audit_events_pkey PRIMARY KEY (project_id, id, slot);
