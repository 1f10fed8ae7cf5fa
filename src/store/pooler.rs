//! The first connection to the database, and the detection of a pooler in between: one in transaction mode assigns
//! another server connection to each transaction, and may lose prepared statements, which exist on one of them only.

use std::time::Duration;

use tokio::time::timeout;
use tokio_postgres::Client;

use super::Store;
use super::connect::DatabaseHosts;
use super::connect::Opened;
use super::refused::CannotConnect;
use super::refused::HostError;
use super::wire::is_statement_lost;

/// How long a replica is not ready after it lost a prepared statement: longer than the interval between two uses of any
/// statement.
const LOST_FOR: Duration = Duration::from_secs(30);

/// How many server connections to occupy to make the pooler use another one.
const TAKEN_UP_MAX: usize = 4;

/// How long to wait for a pooler that has no more connections.
const PATIENCE: Duration = Duration::from_millis(500);

/// Why the database cannot be used, or not yet.
#[derive(Debug, thiserror::Error)]
pub enum ReachError {
    /// No host could be used.
    #[error(transparent)]
    Connect(#[from] CannotConnect),
    /// A pooler in between loses prepared statements.
    #[error(
        "a pooler in transaction mode before the database loses prepared statements. Use one that tracks \
         them (pgbouncer 1.21 or later with max_prepared_statements = 200), or its session mode (pool_mode = session), or \
         connect to Postgres itself"
    )]
    StatementsLost,
}

impl ReachError {
    /// Whether retrying is pointless until someone changes the configuration.
    pub fn is_lasting(&self) -> bool {
        match self {
            Self::Connect(error) => error.is_lasting(),
            Self::StatementsLost => true,
        }
    }
}

impl Store {
    /// Connects once, outside the pool, and checks that the database can be used.
    ///
    /// # Errors
    ///
    /// See [`ReachError`].
    pub async fn reach(&self) -> Result<(), ReachError> {
        let one = self.target.connect_alone().await?;
        if !one.backend.state().is_shared() {
            return Ok(());
        }
        match loses_statements(&self.target, &one.client).await {
            Ok(false) => Ok(()),
            Ok(true) => Err(ReachError::StatementsLost),
            Err(error) => Err(CannotConnect(vec![("the pooler".to_owned(), error)]).into()),
        }
    }

    /// Whether a pooler has lost a prepared statement recently.
    pub fn loses_statements(&self) -> bool {
        self.target.faults().statements_lost.within(LOST_FOR)
    }
}

/// Prepares a statement, and runs it on another server connection, by occupying the one that the pooler would use.
async fn loses_statements(target: &DatabaseHosts, one: &Client) -> Result<bool, HostError> {
    let lost = |error: &tokio_postgres::Error| error.code().is_some_and(is_statement_lost);
    one.batch_execute("BEGIN").await?;
    let statement = match one.prepare("SELECT pg_backend_pid()").await {
        Ok(statement) => statement,
        Err(error) if lost(&error) => return Ok(true),
        Err(error) => return Err(error.into()),
    };
    let home: i32 = one.query_one(&statement, &[]).await?.get(0);
    one.batch_execute("COMMIT").await?;
    let mut others = vec![];
    for _ in 0..TAKEN_UP_MAX {
        let Ok(Opened { client: other, .. }) = target.connect_alone().await else { return Ok(false) };
        let taken = timeout(PATIENCE, other.batch_execute("BEGIN")).await;
        others.push(other);
        match timeout(PATIENCE, one.query_one(&statement, &[])).await {
            Ok(Ok(row)) if row.get::<_, i32>(0) != home => return Ok(false),
            Ok(Ok(_)) => {}
            Ok(Err(error)) if lost(&error) => return Ok(true),
            Ok(Err(error)) => return Err(error.into()),
            // The pooler has a single connection: lost statements show later.
            Err(_) => return Ok(false),
        }
        if !matches!(taken, Ok(Ok(()))) {
            return Ok(false);
        }
    }
    Ok(false)
}
