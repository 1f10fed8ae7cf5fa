DROP TABLE session_requests;
DROP TABLE sessions;
DROP TABLE users;
