ALTER TABLE sessions
    ADD COLUMN slot smallint NOT NULL DEFAULT 0,
    DROP CONSTRAINT sessions_pkey,
    ADD CONSTRAINT sessions_pkey PRIMARY KEY (project_id, id, slot);
