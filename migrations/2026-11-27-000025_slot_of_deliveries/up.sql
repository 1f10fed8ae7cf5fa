ALTER TABLE backchannel_deliveries
    ADD COLUMN slot smallint NOT NULL DEFAULT 0,
    DROP CONSTRAINT backchannel_deliveries_pkey,
    ADD CONSTRAINT backchannel_deliveries_pkey PRIMARY KEY (project_id, id, slot);
