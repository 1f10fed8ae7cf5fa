//! The planner's statistics: after a migration, and of tables that grow fast.
//!
//! Postgres plans by statistics, and autovacuum gathers them once a minute at best. Until then a new table counts as nearly
//! empty: a statement about one user reads all users, so a new database gets slower with every sign-in. Building an index
//! records how many rows a table has, but nothing about its columns. A plan that was made without statistics is replaced as
//! soon as there are some.

use diesel::sql_types as sql;
use tokio_postgres::Client;

use super::Store;
use super::engine::TABLES;
use super::error::Error;
use super::migrate::last_value;
use super::statement::statement;
use super::wire::BEGIN;

/// Takes as long as it takes: seconds for tens of millions of rows. The lock is shared with readers and writers.
const SETTINGS: &str = "SET LOCAL statement_timeout = 0; SET LOCAL lock_timeout = '10s'";

impl Store {
    /// Analyses the tables that have rows. An empty one is left as it is: the planner knows that it may fill.
    ///
    /// Only logs a failure, because autovacuum does the same later.
    pub(super) async fn analyze_all(&self) {
        let client = match self.target.connect_alone().await {
            Ok(opened) => opened.client,
            Err(error) => {
                tracing::warn!(%error, "cannot analyse the tables; statements may be slow until autovacuum does");
                return;
            }
        };
        for table in TABLES {
            if let Err(error) = analyze(&client, table).await {
                let _ = client.batch_execute("ROLLBACK").await;
                tracing::warn!(%error, table, "cannot analyse a table; statements may be slow until autovacuum does");
            }
        }
    }

    /// Gathers the statistics of tables that have outgrown theirs. Does nothing where the role does not own the tables, and in a
    /// divided database, whose nodes have them: there autovacuum does it. Does not wait for a table that is being analysed.
    ///
    /// # Errors
    ///
    /// Fails if the database is unavailable.
    pub async fn refresh_statistics(&self) -> Result<(), Error> {
        self.transact("refresh_statistics", |mut tx| async move {
            let tables = TABLES.map(str::to_owned).to_vec();
            let outgrown: Vec<String> = tx.rows(TablesOutgrown { tables }).await?;
            if !outgrown.is_empty() {
                let tables = outgrown.join(", ");
                tx.batch(&format!("ANALYZE (SKIP_LOCKED) {tables}")).await?;
                tracing::debug!(tables, "refreshed the planner's statistics");
            }
            tx.end_reading(()).await
        })
        .await
    }
}

async fn analyze(client: &Client, table: &str) -> Result<(), tokio_postgres::Error> {
    client.batch_execute(&format!("{BEGIN}; {SETTINGS}")).await?;
    let has_rows = last_value(client, &format!("SELECT EXISTS (SELECT FROM {table})")).await?;
    if has_rows.as_deref() == Some("t") {
        client.batch_execute(&format!("ANALYZE {table}")).await?;
    }
    client.batch_execute("COMMIT").await
}

statement! {
    /// The tables that have four times as many pages as when they were last vacuumed or analysed. Large ones are left to
    /// autovacuum: a plan changes little there, and to read them takes long.
    TablesOutgrown -> String as sql::Text =
    "SELECT c.oid::regclass::text AS name FROM unnest("
    [tables: Vec<String> as sql::Array<sql::Text>]
    ") AS t (name) JOIN pg_class AS c ON c.oid = to_regclass(t.name)
     WHERE c.relpages < 2500 AND pg_has_role(c.relowner, 'USAGE')
       AND pg_relation_size(c.oid) / current_setting('block_size')::bigint >= greatest(4 * c.relpages, 8)"
}
