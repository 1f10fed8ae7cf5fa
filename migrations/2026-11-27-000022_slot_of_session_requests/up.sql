-- A request's user decides, so in a divided database a request id is unique for each user only.
ALTER TABLE session_requests
    ADD COLUMN slot smallint NOT NULL DEFAULT 0,
    DROP CONSTRAINT session_requests_pkey,
    ADD CONSTRAINT session_requests_pkey PRIMARY KEY (project_id, request_id, slot);
