-- Whether and how browsers may keep a project's tokens in cookies.
--
-- The previous release goes on beside this one: it neither reads nor writes these columns, and the defaults mean that no cookie is
-- used, which is what it does. So turn cookies on once every server runs this release.

ALTER TABLE projects
    -- Where browsers send them: `host`, or a domain. Null: cookies are not used.
    ADD COLUMN cookies text COLLATE "C",
    -- `SameSite=Strict` in place of `Lax`.
    ADD COLUMN cookies_strict boolean NOT NULL DEFAULT false,
    -- A sign-out also sends `Clear-Site-Data`.
    ADD COLUMN cookies_clear_site_data boolean NOT NULL DEFAULT false,
    ADD CONSTRAINT projects_cookies_check CHECK (cookies = 'host' OR cookies ~ '^[a-z0-9-]+([.][a-z0-9-]+)+$');
