//! The planner's statistics after a migration.
//!
//! Building an index records how many rows a table has, but nothing about its columns. Until autovacuum analyses the table, which may
//! take a minute, statements are planned by default assumptions, and a sign-out can take a second.

use tokio_postgres::Client;

use super::Store;
use super::last_value;
use crate::store::engine::TABLES;
use crate::store::wire::BEGIN;

/// Takes as long as it takes: seconds for tens of millions of rows. The lock is shared with readers and writers.
const SETTINGS: &str = "SET LOCAL statement_timeout = 0; SET LOCAL lock_timeout = '10s'";

impl Store {
    /// Analyses the tables that have rows. An empty one is left as it is: the planner knows that it may fill.
    ///
    /// Only logs a failure, because autovacuum does the same later.
    pub(super) async fn analyze(&self) {
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
}

async fn analyze(client: &Client, table: &str) -> Result<(), tokio_postgres::Error> {
    client.batch_execute(&format!("{BEGIN}; {SETTINGS}")).await?;
    let has_rows = last_value(client, &format!("SELECT EXISTS (SELECT FROM {table})")).await?;
    if has_rows.as_deref() == Some("t") {
        client.batch_execute(&format!("ANALYZE {table}")).await?;
    }
    client.batch_execute("COMMIT").await
}
