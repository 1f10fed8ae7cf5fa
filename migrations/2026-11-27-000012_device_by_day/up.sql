-- The device that a user is shown: as it was at the last midnight (UTC), like the time of the last use. A new address or
-- `User-Agent` would otherwise show within the day that, and when, a session was refreshed.
--
-- The previous release goes on beside it: it neither reads nor writes these columns. A refresh through it changes the device
-- at once for all users, as before, and leaves the columns as they are; a name that a service gives through it may show from
-- the next midnight on. A row that only it has written shows its device as it is.

ALTER TABLE sessions
    -- When a refresh last changed the device first on a day (UTC); null if none has.
    ADD COLUMN device_changed_at timestamptz,
    -- The device until then: its `name`, `user_agent` and `ip`, those that it had.
    ADD COLUMN device_before jsonb,
    -- Not validated: both columns are null in every row that is there, and a check of all rows would block sign-outs meanwhile.
    ADD CONSTRAINT sessions_device_before_check CHECK ((device_changed_at IS NULL) = (device_before IS NULL)) NOT VALID;
