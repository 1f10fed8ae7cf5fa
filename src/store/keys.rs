//! `signing_keys` and `refresh_keys`: sealed as they come, unsealed nowhere in here.

use std::collections::HashMap;

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
use super::schema::signing_keys;
use crate::clock::Timestamp;
use crate::id::KeyId;
use crate::id::ProjectId;
use crate::token::schedule::Schedule;
use crate::token::sealing::Purpose;

/// A private key as it is stored. Has no `Debug`.
pub struct SealedKey {
    /// Which key.
    pub id: KeyId,
    /// Its private half, sealed.
    pub sealed: Vec<u8>,
    /// When it does what.
    pub schedule: Schedule,
}

/// What is known of a key, without the key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeyRow {
    /// Which key.
    pub id: KeyId,
    /// When it was made.
    pub created_at: Timestamp,
    /// When it does what.
    pub schedule: Schedule,
    /// When it was revoked: from then on nothing under it is accepted.
    pub revoked_at: Option<Timestamp>,
}

/// All projects with all their keys but the revoked ones, as of one moment.
pub struct Inventory {
    /// The projects.
    pub projects: Vec<Project>,
    /// The signing keys.
    pub signing: Vec<(ProjectId, SealedKey)>,
    /// The refresh-token keys.
    pub refresh: Vec<(ProjectId, SealedKey)>,
    /// Until when a signature of a signing key may have either of its two spellings; of all other keys it never may.
    pub either_s_until: HashMap<KeyId, Timestamp>,
}

/// How many keys are resealed in one transaction: a few milliseconds' work.
pub const RESEAL_PAGE: usize = 100;

const PAGE_ROWS: i64 = RESEAL_PAGE as i64;

type Columns = (String, Uuid, Vec<u8>, PgTimestamp, Option<PgTimestamp>);

type Facts = (Uuid, PgTimestamp, PgTimestamp, Option<PgTimestamp>, Option<PgTimestamp>);

/// The same statement on the table of either purpose: the two differ in what they call the sealed half.
macro_rules! on_table {
    ($purpose:expr, |$table:ident $(, $sealed:ident)?| $work:expr) => {
        match $purpose {
            Purpose::Signing => {
                use super::schema::signing_keys as $table;
                $(use super::schema::signing_keys::sealed_private as $sealed;)?
                $work
            }
            Purpose::Refresh => {
                use super::schema::refresh_keys as $table;
                $(use super::schema::refresh_keys::sealed_secret as $sealed;)?
                $work
            }
        }
    };
}

impl Store {
    /// Reads all projects and keys. They are few; a replica holds them all in memory.
    ///
    /// # Errors
    ///
    /// When the database is away.
    pub async fn inventory(&self) -> Result<Inventory, Error> {
        // One snapshot: a project without its keys, or keys without their project, would be a refusal to someone.
        self.transact("inventory", |mut tx| async move {
            let one_snapshot =
                tx.pg().batch_execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY").await;
            one_snapshot.map_err(|error| tx.failed(error))?;
            let projects = tx.projects().await?;
            let signing = tx.keys_sealed(Purpose::Signing).await?;
            let refresh = tx.keys_sealed(Purpose::Refresh).await?;
            let either_s_until = tx.keys_either_s_until().await?;
            tx.end_reading(Inventory { projects, signing, refresh, either_s_until }).await
        })
        .await
    }

    /// A project's keys, the revoked ones too, in the order in which they begin to sign; `None` when there is no such
    /// project.
    ///
    /// # Errors
    ///
    /// When the database is away.
    pub async fn keys_list(&self, purpose: Purpose, project: ProjectId) -> Result<Option<Vec<KeyRow>>, Error> {
        self.transact("keys_list", move |mut tx| async move {
            let Some(_) = tx.project_find(&project).await? else { return tx.end_reading(None).await };
            let mut keys = tx.keys_of(purpose, &project).await?;
            keys.sort_by_key(|key| (key.schedule.signs_from, key.created_at, key.id));
            tx.end_reading(Some(keys)).await
        })
        .await
    }
}

impl Tx {
    async fn keys_sealed(&mut self, purpose: Purpose) -> Result<Vec<(ProjectId, SealedKey)>, Error> {
        let rows: Result<Vec<Columns>, _> = on_table!(purpose, |keys, sealed| {
            let query = keys::table.filter(keys::revoked_at.is_null());
            query.select((keys::project_id, keys::id, sealed, keys::signs_from, keys::retired_at)).load(self.pg()).await
        });
        read(rows.map_err(|error| self.failed(error))?, purpose)
    }

    async fn keys_either_s_until(&mut self) -> Result<HashMap<KeyId, Timestamp>, Error> {
        let query = signing_keys::table.filter(signing_keys::either_s_until.is_not_null());
        let query = query.select((signing_keys::id, signing_keys::either_s_until));
        let rows: Result<Vec<(Uuid, Option<PgTimestamp>)>, _> = query.load(self.pg()).await;
        let rows = rows.map_err(|error| self.failed(error))?.into_iter();
        Ok(rows.filter_map(|(id, until)| Some((KeyId::from_uuid(id), from_pg(until?)))).collect())
    }

    /// A project's keys, in no order, the revoked ones too. Whoever changes them holds the project: see
    /// [`Tx::project_lock`].
    ///
    /// # Errors
    ///
    /// When the database is away.
    pub async fn keys_of(&mut self, purpose: Purpose, project: &ProjectId) -> Result<Vec<KeyRow>, Error> {
        let rows: Result<Vec<Facts>, _> = on_table!(purpose, |keys| {
            let columns = (keys::id, keys::created_at, keys::signs_from, keys::retired_at, keys::revoked_at);
            keys::table.filter(keys::project_id.eq(project.as_str())).select(columns).load(self.pg()).await
        });
        let fact = |(id, created_at, signs_from, retired_at, revoked_at): Facts| KeyRow {
            id: KeyId::from_uuid(id),
            created_at: from_pg(created_at),
            schedule: schedule(signs_from, retired_at),
            revoked_at: revoked_at.map(from_pg),
        };
        Ok(rows.map_err(|error| self.failed(error))?.into_iter().map(fact).collect())
    }

    /// Adds a key to a project.
    ///
    /// # Errors
    ///
    /// [`Error::Conflict`] when there is no such project.
    pub async fn key_insert(
        &mut self,
        purpose: Purpose,
        project: &ProjectId,
        key: SealedKey,
        now: Timestamp,
    ) -> Result<(), Error> {
        let rows = on_table!(purpose, |keys, sealed| {
            let insert = diesel::insert_into(keys::table).values((
                keys::project_id.eq(project.as_str()),
                keys::id.eq(key.id.as_uuid()),
                sealed.eq(key.sealed),
                keys::created_at.eq(to_pg(now)),
                keys::signs_from.eq(to_pg(key.schedule.signs_from)),
                keys::retired_at.eq(key.schedule.retired_at.map(to_pg)),
            ));
            insert.execute(self.pg()).await
        });
        rows.map(drop).map_err(|error| self.failed(error))
    }

    /// Sets when a key does what.
    ///
    /// # Errors
    ///
    /// When the database is away.
    pub async fn key_schedule(
        &mut self,
        purpose: Purpose,
        project: &ProjectId,
        id: KeyId,
        schedule: Schedule,
    ) -> Result<(), Error> {
        let rows = on_table!(purpose, |keys| {
            let update = diesel::update(keys::table.find((project.as_str(), id.as_uuid()))).set((
                keys::signs_from.eq(to_pg(schedule.signs_from)),
                keys::retired_at.eq(schedule.retired_at.map(to_pg)),
            ));
            update.execute(self.pg()).await
        });
        rows.map(drop).map_err(|error| self.failed(error))
    }

    /// Takes a key away: nothing under it is accepted any more. It retires as well, so that the previous release, which
    /// knows nothing of this, signs no longer with it.
    ///
    /// # Errors
    ///
    /// When the database is away.
    pub async fn key_revoke(
        &mut self,
        purpose: Purpose,
        project: &ProjectId,
        id: KeyId,
        now: Timestamp,
    ) -> Result<(), Error> {
        let now = to_pg(now);
        let rows = on_table!(purpose, |keys| {
            let update = diesel::update(keys::table.find((project.as_str(), id.as_uuid())));
            update.set((keys::retired_at.eq(now), keys::revoked_at.eq(now))).execute(self.pg()).await
        });
        rows.map(drop).map_err(|error| self.failed(error))
    }

    /// The next [`RESEAL_PAGE`] of a project's keys that are not revoked, in the order of their ids.
    ///
    /// # Errors
    ///
    /// When the database is away.
    pub async fn keys_page(
        &mut self,
        purpose: Purpose,
        project: &ProjectId,
        after: Option<KeyId>,
    ) -> Result<Vec<SealedKey>, Error> {
        let after = after.map_or(Uuid::nil(), KeyId::as_uuid);
        let rows: Result<Vec<Columns>, _> = on_table!(purpose, |keys, sealed| {
            let behind = keys::table.filter(keys::project_id.eq(project.as_str())).filter(keys::id.gt(after));
            let query = behind.filter(keys::revoked_at.is_null()).order(keys::id).limit(PAGE_ROWS);
            query.select((keys::project_id, keys::id, sealed, keys::signs_from, keys::retired_at)).load(self.pg()).await
        });
        let keys = read(rows.map_err(|error| self.failed(error))?, purpose)?;
        Ok(keys.into_iter().map(|(_, key)| key).collect())
    }

    /// Stores a key as it was sealed anew.
    ///
    /// # Errors
    ///
    /// When the database is away.
    pub async fn key_reseal(
        &mut self,
        purpose: Purpose,
        project: &ProjectId,
        id: KeyId,
        text: Vec<u8>,
    ) -> Result<(), Error> {
        let rows = on_table!(purpose, |keys, sealed| {
            let update = diesel::update(keys::table.find((project.as_str(), id.as_uuid())));
            update.set(sealed.eq(text)).execute(self.pg()).await
        });
        rows.map(drop).map_err(|error| self.failed(error))
    }
}

fn schedule(signs_from: PgTimestamp, retired_at: Option<PgTimestamp>) -> Schedule {
    Schedule { signs_from: from_pg(signs_from), retired_at: retired_at.map(from_pg) }
}

fn read(rows: Vec<Columns>, purpose: Purpose) -> Result<Vec<(ProjectId, SealedKey)>, Error> {
    let table = match purpose {
        Purpose::Signing => "signing_keys",
        Purpose::Refresh => "refresh_keys",
    };
    rows.into_iter()
        .map(|(project, id, sealed, signs_from, retired_at)| {
            let bad = || Error::Inconsistent { table, column: "project_id", row: id.to_string() };
            let key = SealedKey { id: KeyId::from_uuid(id), sealed, schedule: schedule(signs_from, retired_at) };
            Ok((ProjectId::parse(&project).ok_or_else(bad)?, key))
        })
        .collect()
}
