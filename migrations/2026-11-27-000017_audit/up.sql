-- The audit log records more: who created each session, updates, policy changes, erasures, histories of the feed, back-channel
-- endpoints, and refused attempts.
--
-- The previous release runs beside this one: it writes what it did before, and sweeps and anonymises the new records too. The
-- sessions that it creates do not name the server key, so their creation is not recorded. Its `audit` command fails on a record of a new kind.

-- The creation of a session is recorded by the session's own row, as long as there is one. Sessions are created by services
-- only: this is the server key. Null: created by an earlier release.
ALTER TABLE sessions ADD COLUMN creator_key_id uuid;

ALTER TABLE audit_events
    -- What belongs to the kind of event alone. Never names a user: an erasure finds users by `user_id`.
    ADD COLUMN details jsonb,
    DROP CONSTRAINT audit_events_subject_check,
    -- Some events are about the project. Not validated: the previous check was stricter, and a check of all rows would block
    -- writers meanwhile.
    ADD CONSTRAINT audit_events_subject_check CHECK (
        num_nonnulls(session_id, key_id) <= 1 AND (key_id IS NULL) = (key_kind IS NULL)
    ) NOT VALID;
