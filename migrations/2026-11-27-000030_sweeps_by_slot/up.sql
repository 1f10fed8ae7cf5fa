-- A sweep takes one slot after another, so that each step changes rows on one node only.
-- The previous release goes on beside it: on one Postgres it sweeps the one slot, 0, and leaves the column as it is.

ALTER TABLE sweeps ADD COLUMN slot smallint NOT NULL DEFAULT 0;
