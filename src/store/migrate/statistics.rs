//! The planner's statistics after a migration.
//!
//! Building a key records how many rows a table has, but nothing about its columns. Until autovacuum analyses the table, which may
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
        let connected = self.target.connect_alone().await;
        let outcome = match &connected {
            Ok(opened) => analyze_all(&opened.client).await.map_err(|error| error.to_string()),
            Err(error) => Err(error.to_string()),
        };
        if let Err(error) = outcome {
            tracing::warn!(error, "cannot analyse the tables; statements may be slow until autovacuum does");
        }
    }
}

async fn analyze_all(client: &Client) -> Result<(), tokio_postgres::Error> {
    for table in TABLES {
        if last_value(client, &format!("SELECT EXISTS (SELECT FROM {table})")).await?.as_deref() == Some("t") {
            client.batch_execute(&format!("{BEGIN}; {SETTINGS}; ANALYZE {table}; COMMIT")).await?;
        }
    }
    Ok(())
}
