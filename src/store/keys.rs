//! `signing_keys` and `refresh_keys`: sealed as they come, unsealed nowhere in here.

use diesel::ExpressionMethods as _;
use diesel::QueryDsl as _;
use diesel::pg::data_types::PgTimestamp;
use diesel_async::RunQueryDsl as _;
use diesel_async::SimpleAsyncConnection as _;
use uuid::Uuid;

use super::Project;
use super::Store;
use super::Tx;
use super::error::Error;
use super::rows::from_pg;
use super::rows::to_pg;
use super::schema::refresh_keys;
use super::schema::signing_keys;
use crate::clock::Timestamp;
use crate::id::KeyId;
use crate::id::ProjectId;
use crate::token::keys::Schedule;

/// A private key as it is stored. Has no `Debug`.
pub struct SealedKey {
    /// Which key.
    pub id: KeyId,
    /// Its private half, sealed.
    pub sealed: Vec<u8>,
    /// When it does what.
    pub schedule: Schedule,
}

/// All projects with all their keys, as of one moment.
pub struct Inventory {
    /// The projects.
    pub projects: Vec<Project>,
    /// The signing keys.
    pub signing: Vec<(ProjectId, SealedKey)>,
    /// The refresh-token keys.
    pub refresh: Vec<(ProjectId, SealedKey)>,
}

type Columns = (String, Uuid, Vec<u8>, PgTimestamp, Option<PgTimestamp>);

impl Store {
    /// Reads all projects and keys. They are few; a replica holds them all in memory.
    ///
    /// # Errors
    ///
    /// When the database is away.
    pub async fn inventory(&self) -> Result<Inventory, Error> {
        // One snapshot: a project without its keys, or keys without their project, would be a refusal to someone.
        self.transact("inventory", |mut tx| async move {
            let signing = signing_keys::table.select((
                signing_keys::project_id,
                signing_keys::id,
                signing_keys::sealed_private,
                signing_keys::signs_from,
                signing_keys::retired_at,
            ));
            let refresh = refresh_keys::table.select((
                refresh_keys::project_id,
                refresh_keys::id,
                refresh_keys::sealed_secret,
                refresh_keys::signs_from,
                refresh_keys::retired_at,
            ));
            let one_snapshot =
                tx.pg().batch_execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY").await;
            one_snapshot.map_err(|error| tx.failed(error))?;
            let projects = tx.projects().await?;
            let signing: Vec<Columns> = signing.load(tx.pg()).await.map_err(|error| tx.failed(error))?;
            let refresh: Vec<Columns> = refresh.load(tx.pg()).await.map_err(|error| tx.failed(error))?;
            let inventory = Inventory {
                projects,
                signing: read(signing, "signing_keys")?,
                refresh: read(refresh, "refresh_keys")?,
            };
            tx.commit(inventory).await
        })
        .await
    }
}

impl Tx {
    pub(super) async fn signing_key_insert(
        &mut self,
        project: &ProjectId,
        key: SealedKey,
        now: Timestamp,
    ) -> Result<(), Error> {
        let insert = diesel::insert_into(signing_keys::table).values((
            signing_keys::project_id.eq(project.as_str()),
            signing_keys::id.eq(key.id.as_uuid()),
            signing_keys::sealed_private.eq(key.sealed),
            signing_keys::created_at.eq(to_pg(now)),
            signing_keys::signs_from.eq(to_pg(key.schedule.signs_from)),
            signing_keys::retired_at.eq(key.schedule.retired_at.map(to_pg)),
        ));
        insert.execute(self.pg()).await.map_err(|error| self.failed(error))?;
        Ok(())
    }

    pub(super) async fn refresh_key_insert(
        &mut self,
        project: &ProjectId,
        key: SealedKey,
        now: Timestamp,
    ) -> Result<(), Error> {
        let insert = diesel::insert_into(refresh_keys::table).values((
            refresh_keys::project_id.eq(project.as_str()),
            refresh_keys::id.eq(key.id.as_uuid()),
            refresh_keys::sealed_secret.eq(key.sealed),
            refresh_keys::created_at.eq(to_pg(now)),
            refresh_keys::signs_from.eq(to_pg(key.schedule.signs_from)),
            refresh_keys::retired_at.eq(key.schedule.retired_at.map(to_pg)),
        ));
        insert.execute(self.pg()).await.map_err(|error| self.failed(error))?;
        Ok(())
    }
}

fn read(rows: Vec<Columns>, table: &'static str) -> Result<Vec<(ProjectId, SealedKey)>, Error> {
    rows.into_iter()
        .map(|(project, id, sealed, signs_from, retired_at)| {
            let bad = || Error::Inconsistent { table, column: "project_id", row: id.to_string() };
            let schedule = Schedule { signs_from: from_pg(signs_from), retired_at: retired_at.map(from_pg) };
            let key = SealedKey { id: KeyId::from_uuid(id), sealed, schedule };
            Ok((ProjectId::parse(&project).ok_or_else(bad)?, key))
        })
        .collect()
}
