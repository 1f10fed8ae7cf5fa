//! Reaching the database for the first time, and what may stand before it: a pooler that gives each transaction another of the
//! server's connections, and maybe forgets that a named statement is on one of them only.

use std::time::Duration;

use tokio::time::timeout;
use tokio_postgres::Client;

use super::Store;
use super::connect::DatabaseHosts;
use super::connect::Opened;
use super::refused::CannotConnect;
use super::refused::HostError;
use super::wire::is_statement_lost;

/// How long the replica is not ready after a named statement was lost: longer than any statement of ours is not sent.
const LOST_FOR: Duration = Duration::from_secs(30);

/// How many of the server's connections are taken up to have the pooler use another one.
const TAKEN_UP_MAX: usize = 4;

/// How long to wait for a pooler that has no further connection.
const PATIENCE: Duration = Duration::from_millis(500);

/// Why the database cannot be used, or not yet.
#[derive(Debug, thiserror::Error)]
pub enum ReachError {
    /// No host lets us in.
    #[error(transparent)]
    Connect(#[from] CannotConnect),
    /// A pooler stands before it that statements get lost in.
    #[error(
        "a pooler in transaction mode stands before the database and loses prepared statements. Use one that keeps track of \
         them (pgbouncer 1.21 or later with max_prepared_statements = 200), or its session mode (pool_mode = session), or \
         connect to Postgres itself"
    )]
    StatementsLost,
}

impl ReachError {
    /// Whether trying again is of no use: somebody has to change something.
    pub fn is_lasting(&self) -> bool {
        match self {
            Self::Connect(error) => error.is_lasting(),
            Self::StatementsLost => true,
        }
    }
}

impl Store {
    /// Connects once, outside the pool, and finds out whether the database can be used this way.
    ///
    /// # Errors
    ///
    /// As [`ReachError`] says.
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

    /// Whether a pooler has lost a prepared statement of ours lately.
    pub fn loses_statements(&self) -> bool {
        self.target.statements_lost().within(LOST_FOR)
    }
}

/// Prepares a statement, and runs it where it was not prepared: others take up the connection that the pooler would use.
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
            // The pooler has no further connection: all is on one, and what is lost shows later.
            Err(_) => return Ok(false),
        }
        if !matches!(taken, Ok(Ok(()))) {
            return Ok(false);
        }
    }
    Ok(false)
}
