//! `signing_keys` and `refresh_keys`. Keys are stored sealed and never unsealed in this module.

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

/// A sealed private key. Has no `Debug`.
pub struct SealedKey {
    /// The key's id.
    pub id: KeyId,
    /// The private half, sealed.
    pub sealed: Vec<u8>,
    /// When it signs and retires.
    pub schedule: Schedule,
}

/// The facts about a key, without the key itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeyRow {
    /// The key's id.
    pub id: KeyId,
    /// When it was created.
    pub created_at: Timestamp,
    /// When it signs and retires.
    pub schedule: Schedule,
    /// When it was revoked: from then on, nothing that it signed is accepted.
    pub revoked_at: Option<Timestamp>,
}

/// How many keys are resealed in one transaction: a few milliseconds of work.
pub const RESEAL_PAGE: usize = 100;

const PAGE_ROWS: i64 = RESEAL_PAGE as i64;

/// Runs the same statement on either table; they differ in the name of the sealed column.
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
    /// Returns a project's keys, including revoked ones, in the order in which they start to sign; `None` if the
    /// project does not exist.
    ///
    /// # Errors
    ///
    /// Fails if the database is unavailable.
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

    /// Returns a project's keys, including revoked ones, in no particular order. A transaction that changes them must
    /// hold [`Tx::project_lock`].
    ///
    /// # Errors
    ///
    /// Fails if the database is unavailable.
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
    /// Returns [`Error::Conflict`] if the project does not exist.
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

    /// Sets a key's schedule.
    ///
    /// # Errors
    ///
    /// Fails if the database is unavailable.
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

    /// Revokes a key: nothing that it signed is accepted any more. Also retires it, so that the previous release, which
    /// does not know revoked keys, stops signing with it.
    ///
    /// # Errors
    ///
    /// Fails if the database is unavailable.
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

    /// Returns the next [`RESEAL_PAGE`] of a project's keys that are not revoked, ordered by id.
    ///
    /// # Errors
    ///
    /// Fails if the database is unavailable.
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

    /// Replaces the sealed form of a key.
    ///
    /// # Errors
    ///
    /// Fails if the database is unavailable.
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

/// A row of either table. `sealed` is `sealed_private` or `sealed_secret`, so columns are matched by position.
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

/// A row of either table without the sealed half; also matched by position.
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
