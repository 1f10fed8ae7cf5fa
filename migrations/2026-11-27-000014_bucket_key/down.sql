ALTER TABLE projects DROP COLUMN bucket_key;
