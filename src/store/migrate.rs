//! The migrations, compiled in.

use diesel::migration::MigrationSource;
use diesel::pg::Pg;
use diesel_async::AsyncMigrationHarness;
use diesel_async::AsyncPgConnection;
use diesel_async::RunQueryDsl as _;
use diesel_async::SimpleAsyncConnection as _;
use diesel_migrations::EmbeddedMigrations;
use diesel_migrations::MigrationHarness as _;
use diesel_migrations::embed_migrations;

use super::Error;
use super::Store;

const MIGRATIONS: EmbeddedMigrations = embed_migrations!();

/// Any number, but always the same: two processes that migrate at once take turns.
const LOCK: &str = "SELECT pg_advisory_lock(7306081530162)";
const UNLOCK: &str = "SELECT pg_advisory_unlock(7306081530162)";

/// Why the migrations did not go through.
#[derive(Debug, thiserror::Error)]
pub enum MigrateError {
    /// The database is away.
    #[error(transparent)]
    Store(#[from] Error),
    /// A migration failed; it was rolled back.
    #[error("a migration failed")]
    Failed(#[source] Box<dyn std::error::Error + Send + Sync>),
}

impl Store {
    /// Applies what is missing; answers with the names of the migrations it applied. Needs the multi-thread runtime.
    ///
    /// # Errors
    ///
    /// As [`MigrateError`] says.
    pub async fn migrate(&self) -> Result<Vec<String>, MigrateError> {
        self.with_harness(|harness| {
            let applied = harness.run_pending_migrations(MIGRATIONS)?;
            Ok(applied.iter().map(ToString::to_string).collect())
        })
        .await
    }

    /// Takes every migration back. All data is gone: for tests.
    ///
    /// # Errors
    ///
    /// As [`MigrateError`] says.
    pub async fn unmigrate(&self) -> Result<(), MigrateError> {
        self.with_harness(|harness| harness.revert_all_migrations(MIGRATIONS).map(|_| ())).await
    }

    /// The names of the migrations that are still to be applied.
    ///
    /// # Errors
    ///
    /// As [`MigrateError`] says.
    pub async fn pending_migrations(&self) -> Result<Vec<String>, MigrateError> {
        let applied = self
            .once("pending_migrations", |mut tx| async move {
                let exists = diesel::select(diesel::dsl::sql::<diesel::sql_types::Bool>(
                    "to_regclass('__diesel_schema_migrations') IS NOT NULL",
                ));
                let exists: Vec<bool> = exists.load(tx.pg()).await.map_err(|error| tx.failed(error))?;
                if exists != [true] {
                    return tx.commit(vec![]).await;
                }
                let versions =
                    diesel::dsl::sql::<diesel::sql_types::Text>("SELECT version FROM __diesel_schema_migrations");
                let versions: Vec<String> = versions.load(tx.pg()).await.map_err(|error| tx.failed(error))?;
                tx.commit(versions).await
            })
            .await?;
        let known = MigrationSource::<Pg>::migrations(&MIGRATIONS).map_err(MigrateError::Failed)?;
        let pending = known.iter().filter(|one| !applied.contains(&one.name().version().to_string()));
        Ok(pending.map(|one| one.name().to_string()).collect())
    }

    async fn with_harness<T>(
        &self,
        work: impl FnOnce(&mut AsyncMigrationHarness<AsyncPgConnection>) -> diesel::migration::Result<T>,
    ) -> Result<T, MigrateError> {
        // A connection of its own, outside the pool's deadline: a migration may take long.
        let mut connection = self.checkout("migrate").await?.detach();
        let failed = |error: diesel::result::Error| MigrateError::Failed(error.into());
        connection.batch_execute(LOCK).await.map_err(failed)?;
        let mut harness = AsyncMigrationHarness::new(connection);
        let outcome = work(&mut harness).map_err(MigrateError::Failed);
        harness.into_inner().batch_execute(UNLOCK).await.map_err(failed)?;
        outcome
    }
}
