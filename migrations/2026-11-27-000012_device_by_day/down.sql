ALTER TABLE sessions
    DROP CONSTRAINT sessions_device_before_check,
    DROP COLUMN device_changed_at,
    DROP COLUMN device_before;
