ALTER TABLE users
    ADD COLUMN slot smallint NOT NULL DEFAULT 0,
    DROP CONSTRAINT users_pkey,
    ADD CONSTRAINT users_pkey PRIMARY KEY (project_id, user_id, slot);
