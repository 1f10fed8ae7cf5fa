-- Forgets the records of the new kinds.
DELETE FROM audit_events WHERE kind > 5;
ALTER TABLE audit_events
    DROP COLUMN details,
    DROP CONSTRAINT audit_events_subject_check,
    ADD CONSTRAINT audit_events_subject_check CHECK (
        num_nonnulls(session_id, key_id) = 1 AND (key_id IS NULL) = (key_kind IS NULL)
    );
ALTER TABLE sessions DROP COLUMN creator_key_id;
