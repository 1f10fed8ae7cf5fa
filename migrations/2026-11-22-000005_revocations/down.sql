DELETE FROM session_requests WHERE session_id IS NULL;
ALTER TABLE session_requests
    DROP COLUMN revoked_count,
    ALTER COLUMN session_id SET NOT NULL;
ALTER TABLE projects DROP COLUMN epoch_raised_at, DROP COLUMN users_epoch_base;
ALTER TABLE users DROP COLUMN epoch_raised_at;
DROP TABLE revocations;
