-- When a key was revoked: a compromised key, under which nothing is accepted any more. NULL for all others.
--
-- The previous release, running beside it, does not read the column: it no longer signs with a revoked key, for revoking
-- retires it too, but goes on accepting what was signed with it. So revoke keys once every replica is on this release.

ALTER TABLE signing_keys ADD COLUMN revoked_at timestamptz;
ALTER TABLE refresh_keys ADD COLUMN revoked_at timestamptz;
