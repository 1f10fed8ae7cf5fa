-- Access tokens that a change of their session's claims supersedes: the session's own epoch, and an entry of the feed.
--
-- The previous release runs beside this one: it neither raises the epoch nor reads it, issues tokens without it, which count as
-- superseded, and skips the entries. So supersede tokens once every server runs this release.

ALTER TABLE sessions
    -- Raising it supersedes the session's access tokens that were issued under a smaller one.
    ADD COLUMN session_epoch bigint NOT NULL DEFAULT 0;

-- The constraints are not checked against existing rows, which they hold for: that would keep writers waiting.
ALTER TABLE revocations
    -- The session, in a column of its own: the previous release takes `session_id` for a session that has ended.
    ADD COLUMN superseded_session_id uuid,
    ADD COLUMN session_epoch bigint,
    DROP CONSTRAINT revocations_kind_check,
    ADD CONSTRAINT revocations_kind_check CHECK (
        num_nonnulls(session_id, user_epoch, project_epoch, signing_key_id, server_key_id, superseded_session_id) = 1
    ) NOT VALID,
    ADD CONSTRAINT revocations_superseded_check CHECK ((superseded_session_id IS NULL) = (session_epoch IS NULL)) NOT VALID;
