DELETE FROM server_keys WHERE digest IS NULL;
-- The index and the constraints on the columns go with them.
ALTER TABLE server_keys
    DROP COLUMN last_used_at,
    DROP COLUMN certificate_name,
    ALTER COLUMN digest SET NOT NULL;
