//! What can go wrong with the database. That something is not there is no error: it is an `Option`.

use diesel::result::DatabaseErrorKind;
use diesel::result::Error as DieselError;

/// A failure of the store.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The database is away, too slow, or not writable now. The operation may or may not have happened; each is safe to
    /// repeat.
    #[error("the database did not answer in time or at all, in {operation}")]
    Unavailable {
        /// What was being done.
        operation: &'static str,
        /// What the driver said, where it said anything.
        #[source]
        source: Option<Box<dyn std::error::Error + Send + Sync>>,
    },
    /// A named constraint stood against it.
    #[error("the constraint {constraint} stands against {operation}")]
    Conflict {
        /// What was being done.
        operation: &'static str,
        /// The constraint.
        constraint: String,
    },
    /// The database holds something that we never write.
    #[error("{table}.{column} holds what cannot be there, in row {row}")]
    Inconsistent {
        /// The table.
        table: &'static str,
        /// The column.
        column: &'static str,
        /// The row's key.
        row: String,
    },
    /// The database refused the statement: our bug.
    #[error("the database refused a statement of {operation}")]
    Query {
        /// What was being done.
        operation: &'static str,
        /// What it said.
        #[source]
        source: DieselError,
    },
}

impl Error {
    /// Sorts a driver's error. `broken` tells whether the connection it came over is gone.
    pub(super) fn from_diesel(operation: &'static str, error: DieselError, broken: bool) -> Self {
        match error {
            DieselError::DatabaseError(kind, info) => match (kind, info.constraint_name()) {
                (
                    DatabaseErrorKind::UniqueViolation
                    | DatabaseErrorKind::ForeignKeyViolation
                    | DatabaseErrorKind::CheckViolation,
                    Some(constraint),
                ) => Self::Conflict { operation, constraint: constraint.to_owned() },
                (kind, _) if broken || is_outage(&kind, info.message()) => {
                    Self::Unavailable { operation, source: Some(info.message().to_owned().into()) }
                }
                (kind, _) => Self::Query { operation, source: DieselError::DatabaseError(kind, info) },
            },
            DieselError::BrokenTransactionManager => Self::Unavailable { operation, source: Some(error.into()) },
            source => Self::Query { operation, source },
        }
    }

    /// The operation cannot be done, or confirmed, now.
    pub(super) fn unavailable(operation: &'static str, why: impl Into<String>) -> Self {
        Self::Unavailable { operation, source: Some(why.into().into()) }
    }

    /// The database answers, but it was not seen to commit for too long: it may have been deposed.
    pub fn stale() -> Self {
        Self::unavailable("feed", "the feed of revocations is older than --staleness-max")
    }

    /// The operation ran out of time.
    pub(super) const fn late(operation: &'static str) -> Self {
        Self::Unavailable { operation, source: None }
    }
}

fn is_outage(kind: &DatabaseErrorKind, message: &str) -> bool {
    match kind {
        DatabaseErrorKind::UnableToSendCommand
        | DatabaseErrorKind::ClosedConnection
        // The old primary after a failover: the next connection finds the new one.
        | DatabaseErrorKind::ReadOnlyTransaction
        // Nothing happened, and a repeat may go through.
        | DatabaseErrorKind::SerializationFailure => true,
        // The driver keeps no SQLSTATE of these. A server that shuts down closes the connection too, but the message may be
        // here first; a deadlock and a lock that is held too long have undone the statement, and a repeat may go through.
        _ => ["terminating connection", "the database system is", "deadlock detected", "canceling statement due to lock"]
            .iter()
            .any(|start| message.starts_with(start)),
    }
}
