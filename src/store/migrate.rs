//! The migrations, compiled in.

use std::error::Error as StdError;
use std::sync::Arc;
use std::sync::Mutex;
use std::time::Duration;

use diesel::migration::MigrationSource;
use diesel::pg::Pg;
use diesel_async::AnsiTransactionManager;
use diesel_async::AsyncMigrationHarness;
use diesel_async::AsyncPgConnection;
use diesel_async::SimpleAsyncConnection as _;
use diesel_async::TransactionManager as _;
use diesel_migrations::EmbeddedMigrations;
use diesel_migrations::MigrationHarness as _;
use diesel_migrations::embed_migrations;
use tokio::time::Instant;
use tokio::time::sleep;
use tokio_postgres::Client;
use tokio_postgres::SimpleQueryMessage;
use tokio_postgres::error::SqlState;

use super::Error;
use super::Store;
use super::connect::Opened;
use super::refused::CannotConnect;
use super::settings;

const MIGRATIONS: EmbeddedMigrations = embed_migrations!();

/// Any number, but always the same: two processes that migrate at once take turns. The lock belongs to a transaction that
/// stays open meanwhile, on a connection of its own, so that it holds through a pooler too.
const LOCK: &str = "SELECT pg_try_advisory_xact_lock(7306081530162)";

/// Who holds that lock.
const LOCK_HOLDERS: &str = "SELECT pid FROM pg_locks WHERE locktype = 'advisory' AND granted AND objsubid = 1 \
     AND database = (SELECT oid FROM pg_database WHERE datname = current_database()) \
     AND (classid::bigint << 32 | objid::bigint) = 7306081530162";

/// How long `migrate` waits for others, unless told otherwise.
pub const MIGRATE_WAIT: Duration = Duration::from_secs(5 * 60);

/// How often to look whether the lock is free.
const POLL_INTERVAL: Duration = Duration::from_millis(250);

/// A migration that waits for a table makes all wait who come after it. So it gives up after a second (see
/// [`STEP_SETTINGS`]), lets them through for as long, and tries again.
const TABLE_LOCK_WAIT: Duration = Duration::from_secs(1);

/// How often to say what is waited for.
const LOG_INTERVAL: Duration = Duration::from_secs(5);

/// Why the migrations did not go through.
#[derive(Debug, thiserror::Error)]
pub enum MigrateError {
    /// The database is away.
    #[error(transparent)]
    Store(#[from] Error),
    /// No connection came about.
    #[error(transparent)]
    Connect(#[from] CannotConnect),
    /// The lock could not be asked for.
    #[error("the lock that migrations take turns by cannot be had")]
    Lock(#[source] Box<dyn StdError + Send + Sync>),
    /// Others were in the way for too long.
    #[error("waited {} for {what}; --wait sets how long", humantime::format_duration(*waited))]
    Busy {
        /// For how long.
        waited: Duration,
        /// For whom.
        what: String,
    },
    /// The tables are there, and not where we look.
    #[error(
        "the tables are in the schema {0}, and sessiond watching in `public` unless the URL says otherwise: add \
         options=-c%20search_path%3D{0} to DATABASE_URL"
    )]
    WrongSchema(String),
    /// A migration failed; it was rolled back.
    #[error("a migration failed")]
    Failed(#[source] Box<dyn StdError + Send + Sync>),
}

/// A connection of one's own. It holds the lock, and asks who is in the way.
struct LockSession(Client);

impl Store {
    /// Applies what is missing; answers with the names of the migrations it applied. Needs the multi-thread runtime.
    ///
    /// # Errors
    ///
    /// As [`MigrateError`] says.
    pub async fn migrate(&self) -> Result<Vec<String>, MigrateError> {
        self.migrate_within(MIGRATE_WAIT).await
    }

    /// The same, and waits for at most this long: for another process that migrates, and for those who use the tables.
    /// Meanwhile the log says for whom.
    ///
    /// # Errors
    ///
    /// As [`MigrateError`] says.
    pub async fn migrate_within(&self, wait: Duration) -> Result<Vec<String>, MigrateError> {
        self.check_schema().await?;
        self.step_by_step(wait, |harness| match harness.pending_migrations(MIGRATIONS)?.is_empty() {
            true => Ok(None),
            false => Ok(Some(harness.run_next_migration(MIGRATIONS)?.to_string())),
        })
        .await
    }

    /// Takes every migration back. All data is gone: for tests.
    ///
    /// # Errors
    ///
    /// As [`MigrateError`] says.
    pub async fn unmigrate(&self) -> Result<(), MigrateError> {
        let step =
            |harness: &mut AsyncMigrationHarness<AsyncPgConnection>| match harness.applied_migrations()?.is_empty() {
                true => Ok(None),
                false => Ok(Some(harness.revert_last_migration(MIGRATIONS)?.to_string())),
            };
        self.step_by_step(MIGRATE_WAIT, step).await.map(drop)
    }

    /// The names of the migrations that are still to be applied.
    ///
    /// # Errors
    ///
    /// As [`MigrateError`] says.
    pub async fn pending_migrations(&self) -> Result<Vec<String>, MigrateError> {
        let (exists, applied) = self
            .idempotent("pending_migrations", |mut tx| async move {
                let exists = diesel::select(diesel::dsl::sql::<diesel::sql_types::Bool>(
                    "to_regclass('__diesel_schema_migrations') IS NOT NULL",
                ));
                let exists: Vec<bool> = tx.load(exists).await?;
                if exists != [true] {
                    return tx.commit((false, vec![])).await;
                }
                let versions =
                    diesel::dsl::sql::<diesel::sql_types::Text>("SELECT version FROM __diesel_schema_migrations");
                let versions: Vec<String> = tx.load(versions).await?;
                tx.commit((true, versions)).await
            })
            .await?;
        if !exists {
            self.check_schema().await?;
        }
        let known = MigrationSource::<Pg>::migrations(&MIGRATIONS).map_err(MigrateError::Failed)?;
        let pending = known.iter().filter(|one| !applied.contains(&one.name().version().to_string()));
        Ok(pending.map(|one| one.name().to_string()).collect())
    }

    /// Whether the tables are in another schema than ours, as the role's search path may have had it.
    ///
    /// # Errors
    ///
    /// [`MigrateError::WrongSchema`] if so; and when the database is away.
    async fn check_schema(&self) -> Result<(), MigrateError> {
        let schemas = self
            .idempotent("not_elsewhere", |mut tx| async move {
                let schemas = diesel::dsl::sql::<diesel::sql_types::Text>(
                    "SELECT n.nspname::text FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
                     WHERE c.relname = '__diesel_schema_migrations' AND c.relkind = 'r'
                       AND to_regclass('__diesel_schema_migrations') IS NULL
                       AND to_regclass(format('%I.refresh_keys', n.nspname)) IS NOT NULL",
                );
                let schemas: Vec<String> = tx.load(schemas).await?;
                tx.commit(schemas).await
            })
            .await?;
        schemas.into_iter().next().map_or(Ok(()), |schema| Err(MigrateError::WrongSchema(schema)))
    }

    /// Takes steps, a transaction each, until there is none left.
    async fn step_by_step(
        &self,
        wait: Duration,
        step: impl Fn(&mut AsyncMigrationHarness<AsyncPgConnection>) -> diesel::migration::Result<Option<String>>,
    ) -> Result<Vec<String>, MigrateError> {
        let began = Instant::now();
        let lock = Arc::new(self.acquire_lock(wait).await?);
        let mut done = vec![];
        // A connection of its own, outside the pool's deadline: a step may take long.
        let Opened { client: mut connection, backend, .. } = self.target.connect().await?;
        let state = backend.state();
        loop {
            let failed = |error: diesel::result::Error| MigrateError::Failed(error.into());
            AnsiTransactionManager::begin_transaction(&mut connection).await.map_err(failed)?;
            connection.batch_execute(STEP_SETTINGS).await.map_err(failed)?;
            let process = diesel::dsl::sql::<diesel::sql_types::Integer>("pg_backend_pid()");
            let process: Vec<i32> =
                diesel_async::RunQueryDsl::load(diesel::select(process), &mut connection).await.map_err(failed)?;
            state.take_error();
            let blockers = Arc::<Mutex<String>>::default();
            let (seen, watcher) = (Arc::clone(&blockers), Arc::clone(&lock));
            // Beside the step, which blocks this task.
            let watching = tokio::spawn(async move { watcher.watch_blockers(process, &seen).await });
            let mut harness = AsyncMigrationHarness::new(connection);
            let outcome = step(&mut harness);
            connection = harness.into_inner();
            watching.abort();
            match outcome {
                Ok(Some(name)) => {
                    AnsiTransactionManager::commit_transaction(&mut connection).await.map_err(failed)?;
                    done.push(name);
                    continue;
                }
                Ok(None) => {
                    AnsiTransactionManager::rollback_transaction(&mut connection).await.map_err(failed)?;
                    return Ok(done);
                }
                Err(error) if state.take_error() != Some(SqlState::LOCK_NOT_AVAILABLE) => {
                    return Err(MigrateError::Failed(error));
                }
                Err(_) => {}
            }
            // Those who had to queue behind it go first, then it tries again.
            AnsiTransactionManager::rollback_transaction(&mut connection).await.map_err(failed)?;
            let what = blockers.lock().expect("no one panics while holding it").clone();
            let what = if what.is_empty() { "those who use the tables".to_owned() } else { what };
            if began.elapsed() >= wait {
                return Err(MigrateError::Busy { waited: wait, what });
            }
            tracing::info!("migrate lets others through, and waits for {what}");
            sleep(TABLE_LOCK_WAIT).await;
        }
    }

    /// Takes the lock that processes take turns by.
    async fn acquire_lock(&self, wait: Duration) -> Result<LockSession, MigrateError> {
        let lock = LockSession(self.target.connect_alone().await?.client);
        let failed = |error: tokio_postgres::Error| MigrateError::Lock(error.into());
        let begin = format!("{}; SET LOCAL idle_in_transaction_session_timeout = 0", settings::BEGIN);
        lock.0.batch_execute(&begin).await.map_err(failed)?;
        let (began, mut logged_at) = (Instant::now(), None::<Instant>);
        loop {
            if last_value(&lock.0, LOCK).await.map_err(failed)?.as_deref() == Some("t") {
                return Ok(lock);
            }
            let what = format!("another migrate: {}", lock.describe(LOCK_HOLDERS).await);
            if began.elapsed() >= wait {
                return Err(MigrateError::Busy { waited: wait, what });
            }
            if logged_at.is_none_or(|at| at.elapsed() >= LOG_INTERVAL) {
                logged_at = Some(Instant::now());
                tracing::info!("migrate waits for {what}");
            }
            sleep(POLL_INTERVAL).await;
        }
    }
}

/// For a step alone: it may take longer than the role's or the database's statements may. A client that is gone is noticed, and
/// the step taken back: by servers from version 14 on.
const STEP_SETTINGS: &str = "SET LOCAL lock_timeout = '1s'; SET LOCAL idle_in_transaction_session_timeout = 0;
    SET LOCAL statement_timeout = 0;
    SELECT set_config(name, '1000', true) FROM pg_settings WHERE name = 'client_connection_check_interval'";

impl LockSession {
    /// Looks again and again who is in the way of a process.
    async fn watch_blockers(&self, processes: Vec<i32>, seen: &Mutex<String>) {
        let processes: Vec<String> = processes.iter().map(|process| format!("pg_blocking_pids({process})")).collect();
        let blocking = format!("SELECT unnest({})", processes.join(" || "));
        loop {
            sleep(POLL_INTERVAL).await;
            let what = self.describe(&blocking).await;
            if !what.is_empty() {
                *seen.lock().expect("no one panics while holding it") = what;
            }
        }
    }

    /// Who these processes are.
    async fn describe(&self, processes: &str) -> String {
        let query = format!(
            "SELECT pg_stat_clear_snapshot();
             SELECT string_agg(format('process %s of %s as %s (%s for %s)', pid, coalesce(nullif(application_name, ''), '?'),
                 usename, coalesce(state, '?'), date_trunc('second', clock_timestamp() - xact_start)), ', ' ORDER BY pid)
             FROM pg_stat_activity WHERE pid IN ({processes})"
        );
        // A process that cannot be described is waited for all the same.
        last_value(&self.0, &query).await.ok().flatten().unwrap_or_default()
    }
}

/// The first column of the last row.
async fn last_value(client: &Client, query: &str) -> Result<Option<String>, tokio_postgres::Error> {
    let messages = client.simple_query(query).await?;
    Ok(messages.iter().rev().find_map(|message| match message {
        SimpleQueryMessage::Row(row) => row.get(0).map(str::to_owned),
        _ => None,
    }))
}
