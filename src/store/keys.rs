//! `signing_keys` and `refresh_keys`: sealed as they come, unsealed nowhere in here.

use std::collections::HashMap;

use diesel::ExpressionMethods as _;
use diesel::QueryDsl as _;
use diesel::Queryable;
use diesel::pg::data_types::PgTimestamp;
use uuid::Uuid;

use super::Store;
use super::Tx;
use super::columns::from_pg;
use super::columns::to_pg;
use super::error::Error;
use super::schema::signing_keys;
use sessiond_core::clock::Timestamp;
use sessiond_core::id::KeyId;
use sessiond_core::id::ProjectId;
use sessiond_core::token::schedule::Schedule;
use sessiond_core::token::sealing::Purpose;

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

/// How many keys are resealed in one transaction: a few milliseconds' work.
pub const RESEAL_PAGE: usize = 100;

const PAGE_ROWS: i64 = RESEAL_PAGE as i64;

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
    pub(super) async fn keys_sealed(&mut self, purpose: Purpose) -> Result<Vec<(ProjectId, SealedKey)>, Error> {
        let rows: Vec<SealedRow> = on_table!(purpose, |keys, sealed| {
            let query = keys::table.filter(keys::revoked_at.is_null());
            let columns = (keys::project_id, keys::id, sealed, keys::signs_from, keys::retired_at);
            self.load(query.select(columns)).await?
        });
        rows.into_iter().map(|row| row.into_key(purpose)).collect()
    }

    pub(super) async fn keys_either_s_until(&mut self) -> Result<HashMap<KeyId, Timestamp>, Error> {
        let query = signing_keys::table.filter(signing_keys::either_s_until.is_not_null());
        let query = query.select((signing_keys::id, signing_keys::either_s_until));
        let rows: Vec<(Uuid, Option<PgTimestamp>)> = self.load(query).await?;
        Ok(rows.into_iter().filter_map(|(id, until)| Some((KeyId::from_uuid(id), from_pg(until?)))).collect())
    }

    /// A project's keys, in no order, the revoked ones too. A transaction that changes them holds the project: see
    /// [`Tx::project_lock`].
    ///
    /// # Errors
    ///
    /// When the database is away.
    pub async fn keys_of(&mut self, purpose: Purpose, project: &ProjectId) -> Result<Vec<KeyRow>, Error> {
        let rows: Vec<KeyFactsRow> = on_table!(purpose, |keys| {
            let columns = (keys::id, keys::created_at, keys::signs_from, keys::retired_at, keys::revoked_at);
            self.load(keys::table.filter(keys::project_id.eq(project.as_str())).select(columns)).await?
        });
        Ok(rows.into_iter().map(KeyFactsRow::into_key).collect())
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
        on_table!(purpose, |keys, sealed| {
            let insert = diesel::insert_into(keys::table).values((
                keys::project_id.eq(project.as_str()),
                keys::id.eq(key.id.as_uuid()),
                sealed.eq(key.sealed),
                keys::created_at.eq(to_pg(now)),
                keys::signs_from.eq(to_pg(key.schedule.signs_from)),
                keys::retired_at.eq(key.schedule.retired_at.map(to_pg)),
            ));
            self.execute(insert).await.map(drop)
        })
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
        on_table!(purpose, |keys| {
            let update = diesel::update(keys::table.find((project.as_str(), id.as_uuid()))).set((
                keys::signs_from.eq(to_pg(schedule.signs_from)),
                keys::retired_at.eq(schedule.retired_at.map(to_pg)),
            ));
            self.execute(update).await.map(drop)
        })
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
        on_table!(purpose, |keys| {
            let update = diesel::update(keys::table.find((project.as_str(), id.as_uuid())));
            self.execute(update.set((keys::retired_at.eq(now), keys::revoked_at.eq(now)))).await.map(drop)
        })
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
        let rows: Vec<SealedRow> = on_table!(purpose, |keys, sealed| {
            let behind = keys::table.filter(keys::project_id.eq(project.as_str())).filter(keys::id.gt(after));
            let query = behind.filter(keys::revoked_at.is_null()).order(keys::id).limit(PAGE_ROWS);
            let columns = (keys::project_id, keys::id, sealed, keys::signs_from, keys::retired_at);
            self.load(query.select(columns)).await?
        });
        rows.into_iter().map(|row| Ok(row.into_key(purpose)?.1)).collect()
    }

    /// Stores a key that was sealed again.
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
        on_table!(purpose, |keys, sealed| {
            let update = diesel::update(keys::table.find((project.as_str(), id.as_uuid())));
            self.execute(update.set(sealed.eq(text))).await.map(drop)
        })
    }
}

/// A row of either table: `sealed_private` or `sealed_secret` is `sealed` here, so columns are matched by their order.
#[derive(Queryable)]
struct SealedRow {
    project_id: String,
    id: Uuid,
    sealed: Vec<u8>,
    signs_from: PgTimestamp,
    retired_at: Option<PgTimestamp>,
}

impl SealedRow {
    fn into_key(self, purpose: Purpose) -> Result<(ProjectId, SealedKey), Error> {
        let table = match purpose {
            Purpose::Signing => "signing_keys",
            Purpose::Refresh => "refresh_keys",
        };
        let bad = || Error::Inconsistent { table, column: "project_id", row: self.id.to_string() };
        let project = ProjectId::parse(&self.project_id).ok_or_else(bad)?;
        let schedule = schedule(self.signs_from, self.retired_at);
        Ok((project, SealedKey { id: KeyId::from_uuid(self.id), sealed: self.sealed, schedule }))
    }
}

/// A row of either table, without the sealed half; matched by order too.
#[derive(Queryable)]
struct KeyFactsRow {
    id: Uuid,
    created_at: PgTimestamp,
    signs_from: PgTimestamp,
    retired_at: Option<PgTimestamp>,
    revoked_at: Option<PgTimestamp>,
}

impl KeyFactsRow {
    fn into_key(self) -> KeyRow {
        KeyRow {
            id: KeyId::from_uuid(self.id),
            created_at: from_pg(self.created_at),
            schedule: schedule(self.signs_from, self.retired_at),
            revoked_at: self.revoked_at.map(from_pg),
        }
    }
}

fn schedule(signs_from: PgTimestamp, retired_at: Option<PgTimestamp>) -> Schedule {
    Schedule { signs_from: from_pg(signs_from), retired_at: retired_at.map(from_pg) }
}
