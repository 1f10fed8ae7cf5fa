ALTER TABLE projects
    DROP CONSTRAINT projects_cookies_check,
    DROP COLUMN cookies,
    DROP COLUMN cookies_strict,
    DROP COLUMN cookies_clear_site_data;
