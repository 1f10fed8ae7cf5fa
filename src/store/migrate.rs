//! The embedded migrations, and how they are applied.

mod ahead;

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
use super::distribute::ONE_CONNECTION;
use super::distribute::place_new;
use super::refused::CannotConnect;
use super::wire::BEGIN;
use super::wire::WireState;
use ahead::IndexAhead;

const MIGRATIONS: EmbeddedMigrations = embed_migrations!();

/// An arbitrary but fixed number, by which concurrent migrations take turns. The lock belongs to a transaction that
/// stays open meanwhile, on its own connection, so that it also works through a pooler.
const LOCK: &str = "SELECT pg_try_advisory_xact_lock(7306081530162)";

/// The processes that hold that lock.
const LOCK_HOLDERS: &str = "SELECT pid FROM pg_locks WHERE locktype = 'advisory' AND granted AND objsubid = 1 \
     AND database = (SELECT oid FROM pg_database WHERE datname = current_database()) \
     AND (classid::bigint << 32 | objid::bigint) = 7306081530162";

/// How long `migrate` waits for other processes by default.
pub const MIGRATE_WAIT: Duration = Duration::from_secs(5 * 60);

/// How often to check whether the lock is free.
const POLL_INTERVAL: Duration = Duration::from_millis(250);

/// A migration that waits for a table lock blocks every later query on the table. So it gives up after a second (see
/// [`STEP_SETTINGS`]), lets the others through for as long, and retries.
const TABLE_LOCK_WAIT: Duration = Duration::from_secs(1);

/// How often to log what is being waited for.
const LOG_INTERVAL: Duration = Duration::from_secs(5);

/// Why the migrations were not applied.
#[derive(Debug, thiserror::Error)]
pub enum MigrateError {
    /// The database is unavailable.
    #[error(transparent)]
    Store(#[from] Error),
    /// No connection could be made.
    #[error(transparent)]
    Connect(#[from] CannotConnect),
    /// The migration lock could not be requested.
    #[error("the migration lock cannot be requested")]
    Lock(#[source] Box<dyn StdError + Send + Sync>),
    /// Other processes held locks for too long.
    #[error("waited {} for {what}; set a longer time with --wait", humantime::format_duration(*waited))]
    Busy {
        /// How long it waited.
        waited: Duration,
        /// The processes it waited for.
        what: String,
    },
    /// The tables are in a schema that is not searched.
    #[error(
        "the tables are in the schema {0}, but sessiond searches `public` unless the URL sets another: add \
         options=-c%20search_path%3D{0} to DATABASE_URL"
    )]
    WrongSchema(String),
    /// The database is no Citus cluster.
    #[error("the database is not the coordinator of a Citus cluster: run CREATE EXTENSION citus in it, on every node")]
    NotCitus,
    /// The database is a worker of a Citus cluster.
    #[error(
        "the database is a worker of a Citus cluster: migrate with the address of the coordinator, which changes every node"
    )]
    Worker,
    /// The Citus cluster has no node for the tables.
    #[error("the Citus cluster has no node for the tables: add workers with SELECT citus_add_node('HOST', PORT)")]
    NoNodes,
    /// A table has rows that would have to be assigned to slots.
    #[error("the table {0} has rows: only a database without users can be divided")]
    NotEmpty(&'static str),
    /// The number of slots is fixed once the database is divided.
    #[error("the database is divided into {has} slots, not {wanted}, and that cannot be changed")]
    OtherSlots {
        /// How many it has.
        has: u16,
        /// How many were wanted.
        wanted: u16,
    },
    /// The role may not change a setting of a node.
    #[error(
        "cannot switch {name} off on the node {node} ({why}): run ALTER DATABASE … SET {name} = off there as the owner"
    )]
    NodeSetting {
        /// The node, `HOST:PORT`.
        node: String,
        /// The setting.
        name: &'static str,
        /// The node's error.
        why: String,
    },
    /// A migration failed and was rolled back.
    #[error("a migration failed")]
    Failed(#[source] Box<dyn StdError + Send + Sync>),
}

/// A separate connection that holds the lock and observes blocking processes.
pub(super) struct LockSession(Client);

/// What one step did, or needs first.
enum Step {
    /// Nothing is left to do.
    None,
    /// It applied or reverted this migration.
    Taken(String),
    /// These indexes come first, outside of a transaction.
    Prepare(Vec<&'static IndexAhead>),
}

/// How long to wait for others.
struct Patience {
    began: Instant,
    wait: Duration,
}

impl Patience {
    /// Lets the queries that queued behind a table lock go first.
    ///
    /// # Errors
    ///
    /// Fails if it has waited for too long.
    async fn pause(&self, what: &str) -> Result<(), MigrateError> {
        if self.began.elapsed() >= self.wait {
            return Err(MigrateError::Busy { waited: self.wait, what: what.to_owned() });
        }
        tracing::info!("the migration pauses and lets other queries through; it waits for {what}");
        sleep(TABLE_LOCK_WAIT).await;
        Ok(())
    }
}

impl Store {
    /// Applies pending migrations, and returns their names. Requires the multi-thread runtime.
    ///
    /// # Errors
    ///
    /// See [`MigrateError`].
    pub async fn migrate(&self) -> Result<Vec<String>, MigrateError> {
        self.migrate_within(MIGRATE_WAIT).await
    }

    /// Applies pending migrations as [`Store::migrate`], and waits at most `wait`: for other migrations, and for users
    /// of the tables. Logs what it waits for.
    ///
    /// # Errors
    ///
    /// See [`MigrateError`].
    pub async fn migrate_within(&self, wait: Duration) -> Result<Vec<String>, MigrateError> {
        self.check_schema().await?;
        let mut prepared = String::new();
        let step = |harness: &mut AsyncMigrationHarness<AsyncPgConnection>| {
            let Some(next) = harness.pending_migrations(MIGRATIONS)?.into_iter().next() else { return Ok(Step::None) };
            let version = next.name().version().to_string();
            if version != prepared {
                let indexes = IndexAhead::of(&version);
                prepared = version;
                if !indexes.is_empty() {
                    return Ok(Step::Prepare(indexes));
                }
            }
            Ok(Step::Taken(harness.run_next_migration(MIGRATIONS)?.to_string()))
        };
        let applied = self.step_by_step(wait, step).await?;
        if !applied.is_empty() {
            self.analyze_all().await;
        }
        Ok(applied)
    }

    /// Reverts all migrations, which deletes all data: for tests.
    ///
    /// # Errors
    ///
    /// See [`MigrateError`].
    pub async fn unmigrate(&self) -> Result<(), MigrateError> {
        let step =
            |harness: &mut AsyncMigrationHarness<AsyncPgConnection>| match harness.applied_migrations()?.is_empty() {
                true => Ok(Step::None),
                false => Ok(Step::Taken(harness.revert_last_migration(MIGRATIONS)?.to_string())),
            };
        self.step_by_step(MIGRATE_WAIT, step).await.map(drop)
    }

    /// Returns the names of the pending migrations.
    ///
    /// # Errors
    ///
    /// See [`MigrateError`].
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

    /// Checks that the tables are not in another schema, as a role's search path may have caused.
    ///
    /// # Errors
    ///
    /// Returns [`MigrateError::WrongSchema`] if they are. Fails if the database is unavailable.
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

    /// Runs steps, each in its own transaction, until none is left.
    async fn step_by_step(
        &self,
        wait: Duration,
        mut step: impl FnMut(&mut AsyncMigrationHarness<AsyncPgConnection>) -> diesel::migration::Result<Step>,
    ) -> Result<Vec<String>, MigrateError> {
        let patience = Patience { began: Instant::now(), wait };
        let lock = Arc::new(self.acquire_lock(wait).await?);
        let mut done = vec![];
        // Outside the pool and its deadline: a step may take long.
        let Opened { client: mut connection, backend, .. } = self.target.connect().await?;
        let state = backend.state();
        loop {
            let failed = |error: diesel::result::Error| MigrateError::Failed(error.into());
            AnsiTransactionManager::begin_transaction(&mut connection).await.map_err(failed)?;
            connection.batch_execute(STEP_SETTINGS).await.map_err(failed)?;
            let is_divided = self.target.slots().is_divided();
            if is_divided {
                connection.batch_execute(ONE_CONNECTION).await.map_err(failed)?;
            }
            let process = diesel::dsl::sql::<diesel::sql_types::Integer>("pg_backend_pid()");
            let process: Vec<i32> =
                diesel_async::RunQueryDsl::load(diesel::select(process), &mut connection).await.map_err(failed)?;
            state.take_error();
            let blockers = Arc::<Mutex<String>>::default();
            let (seen, watcher) = (Arc::clone(&blockers), Arc::clone(&lock));
            // Runs concurrently with the step, which blocks this task.
            let watching = tokio::spawn(async move { watcher.watch_blockers(process, &seen).await });
            let mut harness = AsyncMigrationHarness::new(connection);
            let mut outcome = step(&mut harness);
            connection = harness.into_inner();
            if is_divided && matches!(outcome, Ok(Step::Taken(_))) {
                outcome = match place_new(&mut connection).await {
                    Ok(()) => outcome,
                    Err(error) => Err(error.into()),
                };
            }
            watching.abort();
            match outcome {
                Ok(Step::Taken(name)) => {
                    AnsiTransactionManager::commit_transaction(&mut connection).await.map_err(failed)?;
                    done.push(name);
                    continue;
                }
                Ok(Step::None) => {
                    AnsiTransactionManager::rollback_transaction(&mut connection).await.map_err(failed)?;
                    return Ok(done);
                }
                Ok(Step::Prepare(indexes)) => {
                    AnsiTransactionManager::rollback_transaction(&mut connection).await.map_err(failed)?;
                    for index in indexes {
                        index.build(self, &mut connection, state, &patience).await?;
                    }
                    continue;
                }
                Err(error) if state.take_error() != Some(SqlState::LOCK_NOT_AVAILABLE) => {
                    return Err(MigrateError::Failed(error));
                }
                Err(_) => {}
            }
            // Let the queries that queued behind it go first, then retry.
            AnsiTransactionManager::rollback_transaction(&mut connection).await.map_err(failed)?;
            let what = blockers.lock().expect("no one panics while holding it").clone();
            patience.pause(if what.is_empty() { "users of the tables" } else { &what }).await?;
        }
    }

    /// Waits for the lock that serialises migrations.
    pub(super) async fn acquire_lock(&self, wait: Duration) -> Result<LockSession, MigrateError> {
        let lock = LockSession(self.target.connect_alone().await?.client);
        let failed = |error: tokio_postgres::Error| MigrateError::Lock(error.into());
        if self.target.leads_to_worker(&lock.0).await.map_err(failed)? {
            return Err(MigrateError::Worker);
        }
        let begin = format!("{}; SET LOCAL idle_in_transaction_session_timeout = 0", BEGIN);
        lock.0.batch_execute(&begin).await.map_err(failed)?;
        let (began, mut logged_at) = (Instant::now(), None::<Instant>);
        loop {
            if last_value(&lock.0, LOCK).await.map_err(failed)?.as_deref() == Some("t") {
                return Ok(lock);
            }
            let what = format!("another migration: {}", lock.describe(LOCK_HOLDERS).await);
            if began.elapsed() >= wait {
                return Err(MigrateError::Busy { waited: wait, what });
            }
            if logged_at.is_none_or(|at| at.elapsed() >= LOG_INTERVAL) {
                logged_at = Some(Instant::now());
                tracing::info!("the migration waits for {what}");
            }
            sleep(POLL_INTERVAL).await;
        }
    }
}

/// For this step only: it may exceed the role's or the database's statement timeout. From version 14 on, the server
/// notices a lost client, and rolls the step back.
const STEP_SETTINGS: &str = "SET LOCAL lock_timeout = '1s'; SET LOCAL idle_in_transaction_session_timeout = 0;
    SET LOCAL statement_timeout = 0;
    SELECT set_config(name, '1000', true) FROM pg_settings WHERE name = 'client_connection_check_interval'";

impl LockSession {
    /// Repeatedly records which processes block `processes`.
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

    /// Describes these processes.
    async fn describe(&self, processes: &str) -> String {
        let query = format!(
            "SELECT pg_stat_clear_snapshot();
             SELECT string_agg(format('process %s of %s as %s (%s for %s)', pid, coalesce(nullif(application_name, ''), '?'),
                 usename, coalesce(state, '?'), date_trunc('second', clock_timestamp() - xact_start)), ', ' ORDER BY pid)
             FROM pg_stat_activity WHERE pid IN ({processes})"
        );
        // A process that cannot be described is waited for nevertheless.
        last_value(&self.0, &query).await.ok().flatten().unwrap_or_default()
    }
}

/// The first column of the last row.
pub(super) async fn last_value(client: &Client, query: &str) -> Result<Option<String>, tokio_postgres::Error> {
    let messages = client.simple_query(query).await?;
    Ok(messages.iter().rev().find_map(|message| match message {
        SimpleQueryMessage::Row(row) => row.get(0).map(str::to_owned),
        _ => None,
    }))
}
