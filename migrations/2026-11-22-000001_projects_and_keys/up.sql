-- Tenants, and the keys that sign, authenticate and are presented for them.
-- The first migration: there is no previous release that could run beside it.

CREATE TABLE projects (
    id text COLLATE "C" NOT NULL,
    created_at timestamptz NOT NULL,
    -- Raising it ends every session of the project that was opened under a smaller one.
    epoch bigint NOT NULL,
    access_token_ttl_ms bigint NOT NULL,
    refresh_grace_ms bigint NOT NULL,
    idle_ttl_ms bigint NOT NULL,
    strict_refresh boolean NOT NULL,
    CONSTRAINT projects_pkey PRIMARY KEY (id),
    CONSTRAINT projects_id_check CHECK (id ~ '^[A-Za-z0-9_-]{1,64}$'),
    CONSTRAINT projects_access_token_ttl_check CHECK (access_token_ttl_ms BETWEEN 1000 AND 86400000),
    CONSTRAINT projects_refresh_grace_check CHECK (refresh_grace_ms BETWEEN 0 AND 3600000),
    CONSTRAINT projects_idle_ttl_check CHECK (idle_ttl_ms BETWEEN 1000 AND 31708800000)
);

-- The private half alone, sealed under a key that is not in the database. The public half is derived from it.
CREATE TABLE signing_keys (
    project_id text COLLATE "C" NOT NULL,
    id uuid NOT NULL,
    sealed_private bytea NOT NULL,
    created_at timestamptz NOT NULL,
    signs_from timestamptz NOT NULL,
    retired_at timestamptz,
    CONSTRAINT signing_keys_pkey PRIMARY KEY (project_id, id),
    CONSTRAINT signing_keys_project_fkey FOREIGN KEY (project_id) REFERENCES projects (id)
);

CREATE TABLE refresh_keys (
    project_id text COLLATE "C" NOT NULL,
    id uuid NOT NULL,
    sealed_secret bytea NOT NULL,
    created_at timestamptz NOT NULL,
    signs_from timestamptz NOT NULL,
    retired_at timestamptz,
    CONSTRAINT refresh_keys_pkey PRIMARY KEY (project_id, id),
    CONSTRAINT refresh_keys_project_fkey FOREIGN KEY (project_id) REFERENCES projects (id)
);

-- A key names only itself, so it is found by its id alone. What is stored is the SHA-256 digest of its secret.
CREATE TABLE server_keys (
    id uuid NOT NULL,
    project_id text COLLATE "C" NOT NULL,
    digest bytea NOT NULL,
    role text NOT NULL,
    created_at timestamptz NOT NULL,
    revoked_at timestamptz,
    CONSTRAINT server_keys_pkey PRIMARY KEY (id),
    CONSTRAINT server_keys_project_fkey FOREIGN KEY (project_id) REFERENCES projects (id),
    CONSTRAINT server_keys_digest_check CHECK (octet_length(digest) = 32),
    CONSTRAINT server_keys_role_check CHECK (role IN ('service', 'admin'))
);
