-- The previous release knows no such role, and no end.
DELETE FROM server_keys WHERE role = 'verifier' OR expires_at IS NOT NULL;
ALTER TABLE server_keys
    DROP CONSTRAINT server_keys_role_check,
    ADD CONSTRAINT server_keys_role_check CHECK (role IN ('service', 'admin')),
    DROP COLUMN expires_at,
    DROP COLUMN may_impersonate;
