ALTER TABLE users
    DROP CONSTRAINT users_pkey,
    ADD CONSTRAINT users_pkey PRIMARY KEY (project_id, user_id),
    DROP COLUMN slot;
