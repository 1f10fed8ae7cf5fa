DROP TABLE feed_histories;
DROP TABLE feed_beacons;
DELETE FROM revocations WHERE signing_key_id IS NOT NULL OR server_key_id IS NOT NULL;
DROP INDEX revocations_access_expires_idx;
DROP INDEX revocations_xid_idx;
ALTER TABLE revocations
    DROP CONSTRAINT revocations_kind_check,
    DROP COLUMN server_key_id,
    DROP COLUMN signing_key_id,
    DROP COLUMN is_impersonation,
    DROP COLUMN xid,
    ADD CONSTRAINT revocations_kind_check CHECK (num_nonnulls(session_id, user_epoch, project_epoch) = 1);
