-- A writer writes to one slot: in one transaction with its entries, on one node.
ALTER TABLE feed_writers
    ADD COLUMN slot smallint NOT NULL DEFAULT 0,
    DROP CONSTRAINT feed_writers_pkey,
    ADD CONSTRAINT feed_writers_pkey PRIMARY KEY (id, slot);
