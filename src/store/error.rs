//! Database errors. Absence is not an error: it is an `Option`.

use diesel::result::DatabaseErrorInformation;
use diesel::result::DatabaseErrorKind;
use diesel::result::Error as DieselError;
use tokio_postgres::error::SqlState;

use super::refused::DatabaseRefusal;
use super::wire::is_statement_lost;

/// A failure of the store.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The database is unreachable, too slow, or not writable at the moment. The operation may or may not have
    /// happened; every operation is safe to repeat.
    #[error("the database is unavailable (operation {operation})")]
    Unavailable {
        /// The operation.
        operation: &'static str,
        /// The driver's error, if any.
        #[source]
        source: Option<Box<dyn std::error::Error + Send + Sync>>,
    },
    /// A named constraint was violated.
    #[error("operation {operation} violates the constraint {constraint}")]
    Conflict {
        /// The operation.
        operation: &'static str,
        /// The constraint.
        constraint: String,
    },
    /// The database holds a value that this server never writes.
    #[error("unexpected value in column {table}.{column}, row {row}")]
    Inconsistent {
        /// The table.
        table: &'static str,
        /// The column.
        column: &'static str,
        /// The row's key.
        row: String,
    },
    /// The database rejected the statement: a bug in this server.
    #[error("the database rejected a statement of operation {operation}")]
    Query {
        /// The operation.
        operation: &'static str,
        /// The driver's error.
        #[source]
        source: DieselError,
    },
}

impl Error {
    /// Classifies a driver's error by its SQLSTATE, which diesel does not keep. `broken`: whether the connection has
    /// ended.
    pub(super) fn from_diesel(
        operation: &'static str,
        error: DieselError,
        code: Option<SqlState>,
        broken: bool,
        is_divided: bool,
    ) -> Self {
        match error {
            DieselError::DatabaseError(kind, info) => match (kind, constraint_of(info.as_ref(), is_divided)) {
                (
                    DatabaseErrorKind::UniqueViolation
                    | DatabaseErrorKind::ForeignKeyViolation
                    | DatabaseErrorKind::CheckViolation,
                    Some(constraint),
                ) => match own_name(constraint, is_divided) {
                    // A server that knows another number of slots.
                    name if name.ends_with(DIVIDED_CHECK) => Self::unavailable(operation, OTHER_SLOTS),
                    name => Self::Conflict { operation, constraint: name.to_owned() },
                },
                (kind, _) if broken || is_outage(&kind, code.as_ref()) || is_node_lost(code.as_ref(), is_divided) => {
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

    /// The operation cannot be done, or confirmed, at the moment.
    pub(super) fn unavailable(operation: &'static str, why: impl Into<String>) -> Self {
        Self::Unavailable { operation, source: Some(why.into().into()) }
    }

    /// The database answers, but no commit was observed for too long: it may have been deposed.
    pub fn stale() -> Self {
        Self::unavailable("feed", "the feed of revocations is older than --staleness-max")
    }

    /// The operation ran out of time.
    pub const fn late(operation: &'static str) -> Self {
        Self::Unavailable { operation, source: None }
    }
}

/// The constraint that an error is about. Citus passes on an error of another node without that field: then the name is in the
/// message, in whatever language, with the shard's number behind it.
fn constraint_of(info: &(dyn DatabaseErrorInformation + Send + Sync), is_divided: bool) -> Option<&str> {
    const ENDS: [&str; 4] = ["_pkey", "_key", "_fkey", "_check"];
    let in_message = || {
        let mut words = info.message().rsplit(|letter: char| !letter.is_ascii_alphanumeric() && letter != '_');
        words.find(|word| own_name(word, true) != *word && ENDS.iter().any(|end| own_name(word, true).ends_with(end)))
    };
    info.constraint_name().or_else(|| is_divided.then(in_message).flatten())
}

/// The name of a constraint. In a divided database, that of a shard has the shard's number behind it.
fn own_name(constraint: &str, is_divided: bool) -> &str {
    match constraint.rsplit_once('_') {
        Some((name, shard)) if is_divided && !shard.is_empty() && shard.bytes().all(|byte| byte.is_ascii_digit()) => {
            name
        }
        Some(_) | None => constraint,
    }
}

/// The end of the names of the constraints that only a divided database has.
const DIVIDED_CHECK: &str = "_divided_check";

/// Why a row is refused that is in no slot of a divided database.
const OTHER_SLOTS: &str = "the database was divided since this server started: restart it";

/// Whether a node of a divided database may be gone: the coordinator then reports an internal error.
fn is_node_lost(code: Option<&SqlState>, is_divided: bool) -> bool {
    is_divided && code == Some(&SqlState::INTERNAL_ERROR)
}

/// Whether a retry may succeed once the database has recovered or the operator has acted.
fn is_outage(kind: &DatabaseErrorKind, code: Option<&SqlState>) -> bool {
    match code {
        Some(code) => is_passing(code),
        // Not from the server: the connection failed.
        None => matches!(kind, DatabaseErrorKind::UnableToSendCommand | DatabaseErrorKind::ClosedConnection),
    }
}

/// The SQLSTATEs that mean "try again later". Messages are in the server's language; SQLSTATEs are not.
fn is_passing(code: &SqlState) -> bool {
    /// Whole classes: connection; transaction rollback, such as a deadlock; resources; operator intervention, including
    /// shutdown; system errors.
    const CLASSES: [&str; 5] = ["08", "40", "53", "57", "58"];
    /// A standby, or the old primary after a failover; a transaction that was idle or ran for too long; a lock or an
    /// object in use; a snapshot that is too old; a configuration file error.
    const CODES: [&str; 7] = ["25006", "25P03", "25P04", "55P03", "55006", "72000", "F0000"];
    /// The schema differs from this binary's: a migration was reverted, is pending, or changes the result of a prepared
    /// statement; or the role lacks the privilege.
    const SCHEMA: [&str; 6] = ["42P01", "42703", "42883", "3F000", "0A000", "42501"];
    let text = code.code();
    CLASSES.iter().any(|class| text.starts_with(class))
        || CODES.contains(&text)
        || SCHEMA.contains(&text)
        || is_statement_lost(code)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn classified(code: Option<&str>, kind: DatabaseErrorKind, message: &str) -> Error {
        let error = DieselError::DatabaseError(kind, Box::new(message.to_owned()));
        Error::from_diesel("test", error, code.map(SqlState::from_code), false, false)
    }

    #[test]
    fn a_node_that_is_gone_is_an_outage() {
        let error = |is_divided| {
            let error = DieselError::DatabaseError(DatabaseErrorKind::Unknown, Box::new("failure".to_owned()));
            Error::from_diesel("test", error, Some(SqlState::INTERNAL_ERROR), false, is_divided)
        };
        assert!(matches!(error(true), Error::Unavailable { .. }));
        assert!(matches!(error(false), Error::Query { .. }));
    }

    #[test]
    fn a_constraint_of_another_node_is_found_in_the_message() {
        let error = |message: &str, is_divided| {
            let kind = DatabaseErrorKind::ForeignKeyViolation;
            let error = DieselError::DatabaseError(kind, Box::new(message.to_owned()));
            Error::from_diesel("test", error, Some(SqlState::FOREIGN_KEY_VIOLATION), false, is_divided)
        };
        for message in [
            "insert or update on table \"server_keys_102011\" violates foreign key constraint \"server_keys_project_fkey_102011\"",
            "Einfügen in Tabelle »server_keys_102011« verletzt »server_keys_project_fkey_102011«",
        ] {
            let found = error(message, true);
            assert!(
                matches!(&found, Error::Conflict { constraint, .. } if constraint == "server_keys_project_fkey"),
                "{found:?}"
            );
            assert!(matches!(error(message, false), Error::Query { .. }));
        }
        assert!(matches!(error("value \"a_1\" in table users_102011", true), Error::Query { .. }));
    }

    #[test]
    fn constraints_of_shards_have_the_name_of_the_table() {
        assert_eq!(own_name("projects_pkey_102008", true), "projects_pkey");
        for (name, is_divided) in
            [("projects_pkey_102008", false), ("projects_pkey", true), ("pkey_", true), ("x", true)]
        {
            assert_eq!(own_name(name, is_divided), name);
        }
    }

    /// Independent of the server's language.
    #[test]
    fn an_outage_is_recognised_by_its_code_and_not_by_its_text() {
        let codes =
            "08006 08P01 25006 26000 40001 40P01 53100 53200 53300 53400 55P03 57000 57014 57P01 57P02 57P03 57P04
            57P05 58000 58030 58P01 42P01 42703 42883 3F000 0A000 42501";
        for code in codes.split_whitespace() {
            let error = classified(Some(code), DatabaseErrorKind::Unknown, "storniere Anfrage");
            assert!(matches!(error, Error::Unavailable { .. }), "{code}: {error:?}");
        }
        for code in ["42601", "22P02", "23502", "54000", "XX000", "XX001"] {
            let english = classified(Some(code), DatabaseErrorKind::Unknown, "terminating connection");
            assert!(matches!(english, Error::Query { .. }), "{code}: {english:?}");
        }
        let lost = classified(None, DatabaseErrorKind::UnableToSendCommand, "Verbindung geschlossen");
        assert!(matches!(lost, Error::Unavailable { .. }));
    }
}
