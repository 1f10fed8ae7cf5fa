DROP FUNCTION sessions_revoke;
