-- What a server key may do, more narrowly: a role that only verifies tokens, impersonation as a privilege of its own, and an
-- end of validity.
--
-- The previous release runs beside this one: the keys that it inserts may open impersonations and do not expire, as it assumes. It
-- fails on a key with the role `verifier`, and does not know that a key has expired or may not impersonate: create and narrow keys
-- once every server runs this release.

ALTER TABLE server_keys
    DROP CONSTRAINT server_keys_role_check,
    ADD CONSTRAINT server_keys_role_check CHECK (role IN ('verifier', 'service', 'admin')),
    -- Existing keys keep what they can do.
    ADD COLUMN may_impersonate boolean NOT NULL DEFAULT true,
    -- Half-open: at exactly this moment the key has expired. Null: never.
    ADD COLUMN expires_at timestamptz;
