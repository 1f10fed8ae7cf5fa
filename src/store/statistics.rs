//! The planner's statistics: after a migration, and of tables that grow fast.
//!
//! Postgres plans by statistics, and autovacuum gathers them once a minute at best. Until then a new table counts as nearly
//! empty: a statement about one user reads all users, so a new database gets slower with every sign-in. Building an index
//! records how many rows a table has, but nothing about its columns. A plan that was made without statistics is replaced as
//! soon as there are some.

use diesel::sql_types as sql;
use tokio_postgres::Client;

use super::Store;
use super::Tx;
use super::engine::TABLES;
use super::error::Error;
use super::migrate::last_value;
use super::statement::statement;
use super::wire::BEGIN;

/// Takes as long as it takes: seconds for tens of millions of rows. The lock is shared with readers and writers. Nothing is lost
/// with statistics, so their commit waits for no standby.
const SETTINGS: &str =
    "SET LOCAL statement_timeout = 0; SET LOCAL lock_timeout = '10s'; SET LOCAL synchronous_commit = off";

impl Store {
    /// Analyses the tables that have rows. An empty one is left as it is: the planner knows that it may fill.
    ///
    /// Only logs a failure, because autovacuum does the same later.
    pub(super) async fn analyze_all(&self) {
        self.analyze_these(&TABLES).await;
    }

    /// Gathers the statistics of tables that have outgrown theirs; autovacuum does it where the role does not own the tables, and on
    /// the nodes of a divided database. Returns whether nothing failed; failures are logged.
    ///
    /// # Errors
    ///
    /// Fails if the database is unavailable.
    pub async fn refresh_statistics(&self) -> Result<bool, Error> {
        let look = |mut tx: Tx| async move {
            let tables = TABLES.map(str::to_owned).to_vec();
            let is_divided = tx.slots().is_divided();
            let outgrown = if is_divided { vec![] } else { tx.rows(TablesOutgrown { tables }).await? };
            tx.commit(outgrown).await
        };
        let outgrown = self.idempotent("tables_outgrown", look).await?;
        Ok(outgrown.is_empty() || self.analyze_these(&outgrown).await)
    }

    /// Each in a transaction of its own: one that is cut off would keep the new row counts of all its tables, without the rest.
    async fn analyze_these<T: AsRef<str>>(&self, tables: &[T]) -> bool {
        // Not one of the pool: requests wait for those, and give up sooner.
        let client = match self.target.connect_alone().await {
            Ok(opened) => opened.client,
            Err(error) => {
                tracing::warn!(%error, "cannot analyse the tables; statements may be slow until autovacuum does");
                return false;
            }
        };
        let mut is_done = true;
        for table in tables {
            let table = table.as_ref();
            if let Err(error) = analyze(&client, table).await {
                let _ = client.batch_execute("ROLLBACK").await;
                tracing::warn!(%error, table, "cannot analyse a table; statements may be slow until autovacuum does");
                is_done = false;
            }
        }
        is_done
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
    /// The tables with twice as many rows as when they were last analysed. Beyond 200,000 the proportions that plans rest on
    /// change slowly enough for autovacuum. Locks no table.
    TablesOutgrown -> String as sql::Text =
    "SELECT t.name FROM unnest("
    [tables: Vec<String> as sql::Array<sql::Text>]
    ") AS t (name) JOIN pg_class AS c ON c.oid = to_regclass(t.name)
     WHERE pg_has_role(c.relowner, 'USAGE') AND pg_stat_get_live_tuples(c.oid) BETWEEN greatest(2 * c.reltuples, 1000) AND 200000"
}
