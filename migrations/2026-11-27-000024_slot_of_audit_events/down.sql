ALTER TABLE audit_events
    DROP CONSTRAINT audit_events_pkey,
    ADD CONSTRAINT audit_events_pkey PRIMARY KEY (project_id, id),
    DROP COLUMN slot;
