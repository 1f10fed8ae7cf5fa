DROP TABLE server_keys;
DROP TABLE refresh_keys;
DROP TABLE signing_keys;
DROP TABLE projects;
