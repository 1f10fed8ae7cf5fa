ALTER TABLE backchannel_deliveries
    DROP CONSTRAINT backchannel_deliveries_pkey,
    ADD CONSTRAINT backchannel_deliveries_pkey PRIMARY KEY (project_id, id),
    DROP COLUMN slot;
