-- A request's user decides, so in a divided database a request id is unique for each user only.
-- `migrate` builds the index beforehand, while clients go on writing, unless the table is empty.
ALTER TABLE session_requests ADD COLUMN IF NOT EXISTS slot smallint NOT NULL DEFAULT 0;
CREATE UNIQUE INDEX IF NOT EXISTS session_requests_slot_key ON session_requests (project_id, request_id, slot);
ALTER TABLE session_requests
    DROP CONSTRAINT session_requests_pkey,
    ADD CONSTRAINT session_requests_pkey PRIMARY KEY USING INDEX session_requests_slot_key;
