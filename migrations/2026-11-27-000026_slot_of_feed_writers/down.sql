ALTER TABLE feed_writers
    DROP CONSTRAINT feed_writers_pkey,
    ADD CONSTRAINT feed_writers_pkey PRIMARY KEY (id),
    DROP COLUMN slot;
