//! What can go wrong with the database. That something is not there is no error: it is an `Option`.

use diesel::result::DatabaseErrorKind;
use diesel::result::Error as DieselError;
use tokio_postgres::error::SqlState;

use super::refused::DatabaseRefusal;
use super::wire::is_statement_lost;

/// A failure of the store.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The database is away, too slow, or not writable now. The operation may or may not have happened; each is safe to
    /// repeat.
    #[error("the database is unavailable, in {operation}")]
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
    /// Sorts a driver's error by its SQLSTATE, which diesel does not keep. `broken` tells whether the connection it came
    /// over is gone.
    pub(super) fn from_diesel(
        operation: &'static str,
        error: DieselError,
        code: Option<SqlState>,
        broken: bool,
    ) -> Self {
        match error {
            DieselError::DatabaseError(kind, info) => match (kind, info.constraint_name()) {
                (
                    DatabaseErrorKind::UniqueViolation
                    | DatabaseErrorKind::ForeignKeyViolation
                    | DatabaseErrorKind::CheckViolation,
                    Some(constraint),
                ) => Self::Conflict { operation, constraint: constraint.to_owned() },
                (kind, _) if broken || is_outage(&kind, code.as_ref()) => {
                    let message = info.message().to_owned();
                    let source = match code {
                        Some(code) => DatabaseRefusal { message, code }.into(),
                        None => message.into(),
                    };
                    Self::Unavailable { operation, source: Some(source) }
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
    pub const fn late(operation: &'static str) -> Self {
        Self::Unavailable { operation, source: None }
    }
}

/// Whether a repeat may go through, once the database or its operator has seen to it.
fn is_outage(kind: &DatabaseErrorKind, code: Option<&SqlState>) -> bool {
    match code {
        Some(code) => is_passing(code),
        // Nothing came from the server: the connection failed.
        None => matches!(kind, DatabaseErrorKind::UnableToSendCommand | DatabaseErrorKind::ClosedConnection),
    }
}

/// The SQLSTATEs that mean "not now". Messages are in the server's language; these are in none.
fn is_passing(code: &SqlState) -> bool {
    /// Whole classes: the connection; a transaction undone for another's sake; resources; an operator, or the server's own
    /// shutdown; the disk, or the system below.
    const CLASSES: [&str; 5] = ["08", "40", "53", "57", "58"];
    /// A standby, or the old primary after a failover; a transaction that was idle or under way for too long; a lock or an
    /// object that others hold; a snapshot that is gone; a configuration that does not load.
    const CODES: [&str; 7] = ["25006", "25P03", "25P04", "55P03", "55006", "72000", "F0000"];
    /// The tables are not this binary's: a migration was taken back, or is still to come, or changes what a prepared statement
    /// answers; or the role may not use them.
    const SCHEMA: [&str; 5] = ["42P01", "42703", "3F000", "0A000", "42501"];
    let text = code.code();
    CLASSES.iter().any(|class| text.starts_with(class))
        || CODES.contains(&text)
        || SCHEMA.contains(&text)
        || is_statement_lost(code)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sorted(code: Option<&str>, kind: DatabaseErrorKind, message: &str) -> Error {
        let error = DieselError::DatabaseError(kind, Box::new(message.to_owned()));
        Error::from_diesel("test", error, code.map(SqlState::from_code), false)
    }

    /// Whatever language the server speaks.
    #[test]
    fn an_outage_is_told_by_its_code_and_never_by_its_text() {
        let codes =
            "08006 08P01 25006 26000 40001 40P01 53100 53200 53300 53400 55P03 57000 57014 57P01 57P02 57P03 57P04
            57P05 58000 58030 58P01 42P01 42703 3F000 0A000 42501";
        for code in codes.split_whitespace() {
            let error = sorted(Some(code), DatabaseErrorKind::Unknown, "storniere Anfrage");
            assert!(matches!(error, Error::Unavailable { .. }), "{code}: {error:?}");
        }
        for code in ["42601", "22P02", "23502", "54000", "XX000", "XX001"] {
            let english = sorted(Some(code), DatabaseErrorKind::Unknown, "terminating connection");
            assert!(matches!(english, Error::Query { .. }), "{code}: {english:?}");
        }
        let lost = sorted(None, DatabaseErrorKind::UnableToSendCommand, "Verbindung geschlossen");
        assert!(matches!(lost, Error::Unavailable { .. }));
    }
}
