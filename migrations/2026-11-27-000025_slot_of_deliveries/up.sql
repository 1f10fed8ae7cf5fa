-- `migrate` builds the index beforehand, while clients go on writing, unless the table is empty.
ALTER TABLE backchannel_deliveries ADD COLUMN IF NOT EXISTS slot smallint NOT NULL DEFAULT 0;
CREATE UNIQUE INDEX IF NOT EXISTS backchannel_deliveries_slot_key ON backchannel_deliveries (project_id, id, slot);
ALTER TABLE backchannel_deliveries
    DROP CONSTRAINT backchannel_deliveries_pkey,
    ADD CONSTRAINT backchannel_deliveries_pkey PRIMARY KEY USING INDEX backchannel_deliveries_slot_key;
