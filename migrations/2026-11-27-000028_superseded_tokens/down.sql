DELETE FROM revocations WHERE superseded_session_id IS NOT NULL;
ALTER TABLE revocations
    DROP CONSTRAINT revocations_superseded_check,
    DROP CONSTRAINT revocations_kind_check,
    DROP COLUMN superseded_session_id,
    DROP COLUMN session_epoch,
    ADD CONSTRAINT revocations_kind_check CHECK (
        num_nonnulls(session_id, user_epoch, project_epoch, signing_key_id, server_key_id) = 1
    );
ALTER TABLE sessions DROP COLUMN session_epoch;
