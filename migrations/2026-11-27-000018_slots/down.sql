DROP INDEX revocations_writer_idx;
CREATE UNIQUE INDEX revocations_writer_idx ON revocations (writer, seq) WHERE writer <> 0;
ALTER TABLE feed_writers DROP CONSTRAINT feed_writers_pkey, ADD CONSTRAINT feed_writers_pkey PRIMARY KEY (id);
ALTER TABLE backchannel_deliveries
    DROP CONSTRAINT backchannel_deliveries_pkey,
    ADD CONSTRAINT backchannel_deliveries_pkey PRIMARY KEY (project_id, id);
ALTER TABLE audit_events
    DROP CONSTRAINT audit_events_pkey, ADD CONSTRAINT audit_events_pkey PRIMARY KEY (project_id, id);
ALTER TABLE revocations
    DROP CONSTRAINT revocations_pkey, ADD CONSTRAINT revocations_pkey PRIMARY KEY (project_id, id);
ALTER TABLE session_requests
    DROP CONSTRAINT session_requests_pkey,
    ADD CONSTRAINT session_requests_pkey PRIMARY KEY (project_id, request_id);
ALTER TABLE sessions DROP CONSTRAINT sessions_pkey, ADD CONSTRAINT sessions_pkey PRIMARY KEY (project_id, id);
ALTER TABLE users DROP CONSTRAINT users_pkey, ADD CONSTRAINT users_pkey PRIMARY KEY (project_id, user_id);
ALTER TABLE users DROP COLUMN slot;
ALTER TABLE sessions DROP COLUMN slot;
ALTER TABLE session_requests DROP COLUMN slot;
ALTER TABLE revocations DROP COLUMN slot;
ALTER TABLE audit_events DROP COLUMN slot;
ALTER TABLE backchannel_deliveries DROP COLUMN slot;
ALTER TABLE feed_writers DROP COLUMN slot;
DROP TABLE slots;
