-- The key by which a project's users are assigned to buckets (a session id contains the user's bucket). It never changes.
--
-- Sessions from before have random bits in that place. They stay valid: on one Postgres nothing is found by bucket.
-- The previous release goes on beside this one: the default gives its new projects a key, 244 random bits, and its new
-- sessions have random bits.

ALTER TABLE projects
    ADD COLUMN bucket_key bytea NOT NULL DEFAULT (uuid_send(gen_random_uuid()) || uuid_send(gen_random_uuid())),
    ADD CONSTRAINT projects_bucket_key_check CHECK (octet_length(bucket_key) = 32);
