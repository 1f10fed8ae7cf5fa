//! Indexes that are built before the migration that takes them over, while clients go on writing.
//!
//! A migration that builds an index blocks the writers of the table meanwhile: seconds for each million rows. So `migrate` builds
//! it beforehand, concurrently, and the migration only makes it the key. An interrupted build leaves an invalid index, which the
//! next run drops and builds again. A migration also builds an index that is missing: an empty table takes no time.

use std::time::Duration;

use diesel::result::Error as DieselError;
use diesel_async::AnsiTransactionManager;
use diesel_async::AsyncPgConnection;
use diesel_async::RunQueryDsl as _;
use diesel_async::SimpleAsyncConnection as _;
use diesel_async::TransactionManager as _;
use tokio::time::Instant;
use tokio::time::sleep;
use tokio_postgres::error::SqlState;

use super::LOG_INTERVAL;
use super::LockSession;
use super::MigrateError;
use super::POLL_INTERVAL;
use super::Patience;
use super::STEP_SETTINGS;
use super::Store;
use super::WireState;

/// A unique index over the column `slot`, which is added with it.
pub(super) struct IndexAhead {
    /// The version of the migration that takes it over.
    migration: &'static str,
    table: &'static str,
    index: &'static str,
    /// The rest of its definition.
    on: &'static str,
}

const fn ahead(migration: &'static str, table: &'static str, index: &'static str, on: &'static str) -> IndexAhead {
    IndexAhead { migration, table, index, on }
}

const INDEXES_AHEAD: [IndexAhead; 7] = [
    ahead("20261127000020", "users", "users_slot_key", "(project_id, user_id, slot)"),
    ahead("20261127000021", "sessions", "sessions_slot_key", "(project_id, id, slot)"),
    ahead("20261127000022", "session_requests", "session_requests_slot_key", "(project_id, request_id, slot)"),
    ahead("20261127000023", "revocations", "revocations_slot_key", "(project_id, id, slot)"),
    ahead("20261127000023", "revocations", "revocations_writer_slot_idx", "(writer, seq, slot) WHERE writer <> 0"),
    ahead("20261127000024", "audit_events", "audit_events_slot_key", "(project_id, id, slot)"),
    ahead("20261127000025", "backchannel_deliveries", "backchannel_deliveries_slot_key", "(project_id, id, slot)"),
];

/// On a connection of our own: the build may take long, waits for old transactions, and ends when this client does.
const BUILD_SETTINGS: &str = "SET statement_timeout = 0; SET lock_timeout = 0;
    SELECT set_config(name, '1000', false) FROM pg_settings WHERE name = 'client_connection_check_interval'";

impl IndexAhead {
    /// The indexes that this migration takes over.
    pub(super) fn of(migration: &str) -> Vec<&'static Self> {
        INDEXES_AHEAD.iter().filter(|one| one.migration == migration).collect()
    }

    /// Builds it, unless the table is empty. Waits for old transactions as long as `patience` allows.
    ///
    /// # Errors
    ///
    /// See [`MigrateError`].
    pub(super) async fn build(
        &self,
        store: &Store,
        connection: &mut AsyncPgConnection,
        state: &WireState,
        patience: &Patience,
    ) -> Result<(), MigrateError> {
        let Self { table, index, on, .. } = *self;
        let failed = |error: DieselError| MigrateError::Failed(error.into());
        let is_empty = format!("NOT EXISTS (SELECT FROM {table})");
        let has = |valid: &str| {
            format!("EXISTS (SELECT FROM pg_index WHERE indexrelid = to_regclass('{index}') AND {valid} indisvalid)")
        };
        loop {
            state.take_error();
            AnsiTransactionManager::begin_transaction(connection).await.map_err(failed)?;
            connection.batch_execute(STEP_SETTINGS).await.map_err(failed)?;
            if holds(connection, &is_empty).await.map_err(failed)?
                || holds(connection, &has("")).await.map_err(failed)?
            {
                return AnsiTransactionManager::rollback_transaction(connection).await.map_err(failed);
            }
            let mut prepare = format!("ALTER TABLE {table} ADD COLUMN IF NOT EXISTS slot smallint NOT NULL DEFAULT 0");
            if holds(connection, &has("NOT")).await.map_err(failed)? {
                prepare = format!("DROP INDEX {index}; {prepare}");
            }
            match connection.batch_execute(&prepare).await {
                Ok(()) => break AnsiTransactionManager::commit_transaction(connection).await.map_err(failed)?,
                Err(error) if state.take_error() != Some(SqlState::LOCK_NOT_AVAILABLE) => return Err(failed(error)),
                Err(_) => {}
            }
            AnsiTransactionManager::rollback_transaction(connection).await.map_err(failed)?;
            patience.pause(&format!("users of the table {table}")).await?;
        }
        // A setting of a pooler's connection would stay for its next client.
        if !state.is_shared() {
            connection.batch_execute(BUILD_SETTINGS).await.map_err(failed)?;
        }
        tracing::info!(table, index, "building an index, while clients go on writing");
        // Not the session that holds the lock: the build would wait for its transaction.
        let observer = LockSession(store.target.connect_alone().await?.client);
        let create = format!("CREATE UNIQUE INDEX CONCURRENTLY {index} ON {table} {on}");
        tokio::select! {
            built = connection.batch_execute(&create) => built.map_err(failed),
            error = self.observe(&observer, patience.wait) => Err(error),
        }
    }

    /// Logs the transactions that the build waits for; ends when it has waited for too long.
    async fn observe(&self, observer: &LockSession, wait: Duration) -> MigrateError {
        let blockers = format!(
            "SELECT current_locker_pid FROM pg_stat_progress_create_index WHERE relid = to_regclass('{}')",
            self.table
        );
        let (mut waits_since, mut logged_at) = (None::<Instant>, None::<Instant>);
        loop {
            sleep(POLL_INTERVAL).await;
            let what = observer.describe(&blockers).await;
            if what.is_empty() {
                waits_since = None;
                continue;
            }
            if waits_since.get_or_insert_with(Instant::now).elapsed() >= wait {
                return MigrateError::Busy { waited: wait, what };
            }
            if logged_at.is_none_or(|at| at.elapsed() >= LOG_INTERVAL) {
                logged_at = Some(Instant::now());
                tracing::info!(index = self.index, "the build of the index waits for {what}");
            }
        }
    }
}

async fn holds(connection: &mut AsyncPgConnection, condition: &str) -> Result<bool, DieselError> {
    let condition = diesel::dsl::sql::<diesel::sql_types::Bool>(condition);
    let answer: Vec<bool> = diesel::select(condition).load(connection).await?;
    Ok(answer == [true])
}
