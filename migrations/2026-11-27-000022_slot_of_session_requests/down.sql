ALTER TABLE session_requests
    DROP CONSTRAINT session_requests_pkey,
    ADD CONSTRAINT session_requests_pkey PRIMARY KEY (project_id, request_id),
    DROP COLUMN slot;
