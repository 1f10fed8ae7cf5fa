//! Keys that are no longer in use.

use diesel::ExpressionMethods as _;
use diesel::QueryDsl as _;
use diesel::pg::data_types::PgTimestamp;
use uuid::Uuid;

use crate::store::Tx;
use crate::store::columns::from_pg;
use crate::store::error::Error;
use crate::store::schema::refresh_keys;
use crate::store::schema::server_keys;
use crate::store::schema::signing_keys;
use sessiond_core::clock::Timestamp;

/// A table of keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyTable {
    /// `signing_keys`.
    Signing,
    /// `refresh_keys`.
    Refresh,
    /// `server_keys`.
    Server,
}

/// A key that is no longer in use.
#[derive(Clone, Copy, Debug)]
pub struct SweptKey {
    id: Uuid,
    /// When it was retired or revoked.
    pub since: Timestamp,
}

impl Tx {
    /// Returns all retired or revoked keys: they are few.
    pub async fn keys_unused(&mut self, table: KeyTable) -> Result<Vec<SweptKey>, Error> {
        let rows: Vec<(Uuid, Option<PgTimestamp>)> = match table {
            KeyTable::Signing => {
                let query = signing_keys::table.filter(signing_keys::retired_at.is_not_null());
                self.load(query.select((signing_keys::id, signing_keys::retired_at))).await?
            }
            KeyTable::Refresh => {
                let query = refresh_keys::table.filter(refresh_keys::retired_at.is_not_null());
                self.load(query.select((refresh_keys::id, refresh_keys::retired_at))).await?
            }
            KeyTable::Server => {
                let query = server_keys::table.filter(server_keys::revoked_at.is_not_null());
                self.load(query.select((server_keys::id, server_keys::revoked_at))).await?
            }
        };
        Ok(rows.into_iter().filter_map(|(id, since)| Some(SweptKey { id, since: from_pg(since?) })).collect())
    }

    /// Deletes keys. Returns how many.
    pub async fn keys_sweep(&mut self, table: KeyTable, gone: &[SweptKey]) -> Result<usize, Error> {
        let ids: Vec<Uuid> = gone.iter().map(|key| key.id).collect();
        match table {
            KeyTable::Signing => {
                self.execute(diesel::delete(signing_keys::table.filter(signing_keys::id.eq_any(ids)))).await
            }
            KeyTable::Refresh => {
                self.execute(diesel::delete(refresh_keys::table.filter(refresh_keys::id.eq_any(ids)))).await
            }
            KeyTable::Server => {
                self.execute(diesel::delete(server_keys::table.filter(server_keys::id.eq_any(ids)))).await
            }
        }
    }
}
