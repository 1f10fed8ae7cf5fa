-- Server keys that a service proves with its client certificate in place of a secret, and when each key was last used.
--
-- The previous release runs beside this one: it inserts keys with a secret only, and refuses the others, which nobody can
-- present to it. It lists, revokes and sweeps both kinds.

ALTER TABLE server_keys
    ALTER COLUMN digest DROP NOT NULL,
    -- A SPIFFE id or a DNS name in the certificate's subject alternative names. Null for a key with a secret.
    ADD COLUMN certificate_name text COLLATE "C",
    -- To the hour. Null: never, or by an earlier release.
    ADD COLUMN last_used_at timestamptz,
    ADD CONSTRAINT server_keys_credential_check CHECK (num_nonnulls(digest, certificate_name) = 1),
    ADD CONSTRAINT server_keys_certificate_name_check CHECK (octet_length(certificate_name) BETWEEN 1 AND 2048);

-- A name stands for one project and role at a time. Also for the lookup of every request that comes with a certificate.
CREATE UNIQUE INDEX server_keys_certificate_name_key ON server_keys (certificate_name) WHERE revoked_at IS NULL;
