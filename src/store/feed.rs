//! Reads the feed from the database: each revocation once, and the position reached.
//!
//! Transactions commit out of order, so neither a time nor a sequence identifies the new rows. Snapshots do: new is
//! what an earlier snapshot does not show and the present one does. A long transaction elsewhere delays no other
//! revocation.

use std::str::FromStr;

use diesel::ExpressionMethods as _;
use diesel::QueryableByName;
use diesel::pg::data_types::PgTimestamp;
use diesel::sql_types as sql;
use uuid::Uuid;

use super::Store;
use super::Tx;
use super::columns::from_pg;
use super::columns::limit;
use super::columns::reason_of;
use super::columns::to_pg;
use super::error::Error;
use super::publish::FeedPlace;
use super::publish::PublishedRevocation;
use super::schema::feed_beacons;
use super::schema::feed_histories;
use super::statement::statement;
use sessiond_core::clock;
use sessiond_core::clock::Timestamp;
use sessiond_core::id::KeyId;
use sessiond_core::id::ProjectId;
use sessiond_core::id::SessionId;
use sessiond_core::id::UserId;
use sessiond_core::session::revoked::RevocationTarget;

/// A snapshot of the database: which transactions it shows (`pg_snapshot`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PgSnapshot {
    /// All transactions before this one had ended.
    pub xmin: u64,
    /// This transaction and all later ones had not started.
    pub xmax: u64,
    /// The transactions between the two that were in progress.
    pub under_way: Vec<u64>,
}

impl PgSnapshot {
    /// Whether the transaction had ended.
    pub fn shows(&self, xid: u64) -> bool {
        xid < self.xmax && !self.under_way.contains(&xid)
    }

    /// Limits the snapshot to transactions before `xid`; all others count as not started.
    #[must_use]
    pub fn before(self, xid: u64) -> Self {
        let Self { xmin, xmax, mut under_way } = self;
        under_way.retain(|other| *other < xid);
        Self { xmin: xmin.min(xid), xmax: xmax.min(xid), under_way }
    }
}

impl FromStr for PgSnapshot {
    type Err = ();

    /// Parses Postgres' format, `xmin:xmax:xid,xid`.
    fn from_str(text: &str) -> Result<Self, ()> {
        let mut parts = text.split(':');
        let mut next = || parts.next().ok_or(());
        let number = |text: &str| text.parse().map_err(|_| ());
        let (xmin, xmax) = (number(next()?)?, number(next()?)?);
        let under_way = next()?.split(',').filter(|xid| !xid.is_empty()).map(number).collect::<Result<_, _>>()?;
        Ok(Self { xmin, xmax, under_way })
    }
}

/// Identifies a history and its fork: positions in one have no meaning in another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FeedOrigin {
    /// The history; a restore from backup starts a new one.
    pub history: Uuid,
    /// The timeline of the write-ahead log; a promoted server starts a new one.
    pub timeline: u32,
}

/// The row of the feed with the highest transaction number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Newest {
    /// Its place in the feed.
    pub place: FeedPlace,
    /// Until when a verifier may hold a token that it revokes: it is not swept before.
    pub access_expires_at: Timestamp,
}

/// Which transactions to read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unseen {
    /// This one and all later ones.
    pub from: u64,
    /// Earlier ones that were in progress.
    pub under_way: Vec<u64>,
}

/// The result of reading the feed.
#[derive(Clone, Debug)]
pub struct FeedReading {
    /// The new revocations.
    pub revocations: Vec<PublishedRevocation>,
    /// The history and timeline that were read.
    pub origin: FeedOrigin,
    /// The snapshot that was read.
    pub snapshot: PgSnapshot,
    /// When it was read, by the database's clock.
    pub at: Timestamp,
    /// The row with the highest transaction number, among those considered.
    pub newest: Option<Newest>,
    /// Whether the row passed as the newest is gone; `false` if none was passed.
    pub lacks_newest: bool,
    /// The number of the database connection, unique within the process.
    pub connection: u64,
    /// How much of the unseen part was read.
    pub extent: Extent,
}

/// How much of the unseen part was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extent {
    /// All of it.
    Whole,
    /// The first part, up to the snapshot: read on at once.
    Part,
    /// A single transaction wrote more than fits into one reading, so reading cannot continue.
    TooMuch,
}

/// The start of a page of past revocations: after this row.
#[derive(Clone, Copy, Debug)]
pub struct PageStart {
    access_expires_at: Timestamp,
    id: Uuid,
}

impl PageStart {
    /// The first page: revocations whose last access token expires after `from`.
    pub const fn at(from: Timestamp) -> Self {
        Self { access_expires_at: from, id: Uuid::nil() }
    }
}

/// A page of revocations that some access token may outlive.
#[derive(Clone, Debug)]
pub struct RevocationPage {
    /// The revocations.
    pub revocations: Vec<PublishedRevocation>,
    /// The start of the next page; `None` if this is the last one.
    pub next: Option<PageStart>,
}

impl Store {
    /// Registers the listener for this process' revocations. It is called after each commit, before the caller gets its
    /// response. Only the first registered listener is called.
    pub fn on_revocations(&self, listener: impl Fn(Vec<PublishedRevocation>) + Send + Sync + 'static) {
        self.publisher.register(listener);
    }

    /// Reads the database's present position, its newest row, and whether `known` still exists.
    ///
    /// # Errors
    ///
    /// Fails if the database is unavailable.
    pub async fn feed_position(&self, known: Option<Newest>) -> Result<FeedReading, Error> {
        let known = known.map(|newest| newest.place);
        let (xid, id) = (known.and_then(|place| i64::try_from(place.xid).ok()), known.map(|place| place.id));
        self.idempotent("feed_position", move |mut tx| async move {
            let rows = tx.rows(FeedPosition { xid, id }).await?;
            let row = rows.into_iter().next().ok_or_else(|| bad("id"))?;
            let newest = newest(row.xid, row.id, row.access_expires_at);
            let reading = row.present.reading(vec![], newest, tx.connection())?;
            tx.commit(FeedReading { lacks_newest: known.is_some() && !row.has_known, ..reading }).await
        })
        .await
    }

    /// Returns a page of revocations that some access token may outlive, ordered by the expiry of the last such token.
    ///
    /// # Errors
    ///
    /// Fails if the database is unavailable.
    pub async fn feed_page(&self, from: PageStart, rows_max: usize) -> Result<RevocationPage, Error> {
        self.idempotent("feed_page", move |mut tx| async move {
            let (after, after_id) = (to_pg(from.access_expires_at), from.id);
            let rows = tx.rows(FeedPage { after, after_id, rows_max: limit(rows_max) }).await?;
            let last = rows.last().filter(|_| rows.len() == rows_max);
            // Counted by rows, not by parsed rows: those of erased users are left out.
            let next = last
                .and_then(|row| Some(PageStart { access_expires_at: from_pg(row.access_expires_at?), id: row.id? }));
            let revocations = rows.into_iter().filter_map(FeedRow::into_published).collect::<Result<_, _>>()?;
            tx.commit(RevocationPage { revocations, next }).await
        })
        .await
    }

    /// Reads unseen revocations: each one as soon as its transaction has committed. If there are more than `rows_max`,
    /// reads the first ones; see [`Extent`].
    ///
    /// # Errors
    ///
    /// Fails if the database is unavailable.
    pub async fn feed_next(&self, unseen: &Unseen, rows_max: usize) -> Result<FeedReading, Error> {
        let number = |xid: u64| i64::try_from(xid).unwrap_or(i64::MAX);
        let from = number(unseen.from);
        let under_way: Vec<i64> = unseen.under_way.iter().copied().map(number).collect();
        self.idempotent("feed_next", move |mut tx| {
            let (under_way, rows_limit) = (under_way.clone(), limit(rows_max));
            let statement = FeedNext { from, rows_max: rows_limit, under_way, under_way_rows_max: rows_limit };
            async move {
                let mut rows = tx.rows(statement).await?;
                let present = rows.as_slice().iter().next().ok_or_else(|| bad("id"))?.present.clone();
                // Counted by rows, not by parsed rows: those of erased users are left out.
                let (extent, end) = extent(rows.iter().filter_map(|row| row.revocation.xid), from, rows_max);
                if let Some(end) = end {
                    rows.retain(|row| row.revocation.xid.is_some_and(|xid| xid < end));
                }
                let newest = rows.iter().filter_map(|row| row.revocation.newest()).max();
                let revocations = rows.into_iter().filter_map(|row| row.revocation.into_published());
                let reading = present.reading(revocations.collect::<Result<_, _>>()?, newest, tx.connection())?;
                let snapshot = match end {
                    Some(end) => reading.snapshot.before(end.try_into().map_err(|_| bad("xid"))?),
                    None => reading.snapshot,
                };
                tx.commit(FeedReading { snapshot, extent, ..reading }).await
            }
        })
        .await
    }

    /// Writes to the write-ahead log, but to no table, which proves that the server takes writes. Returns the
    /// transaction number, which every later snapshot of the same server shows.
    ///
    /// # Errors
    ///
    /// Fails if the database is unavailable, or does not confirm commits.
    pub async fn feed_beat(&self) -> Result<(FeedOrigin, u64), Error> {
        self.idempotent("feed_beat", move |mut tx| async move {
            let row = tx.rows(FeedBeat {}).await?.into_iter().next().ok_or_else(|| bad("id"))?;
            let xid = row.xid.try_into().map_err(|_| bad("xid"))?;
            tx.commit((origin(row.history, &row.timeline)?, xid)).await
        })
        .await
    }

    /// Starts a new history, unless another one has been started since `last` was read.
    ///
    /// # Errors
    ///
    /// Fails if the database is unavailable.
    pub async fn feed_history_begin(&self, last: FeedOrigin, now: Timestamp) -> Result<(), Error> {
        if self.feed_position(None).await?.origin != last {
            return Ok(());
        }
        self.transact("feed_history_begin", move |mut tx| async move {
            tx.feed_history_insert(now).await?;
            tx.commit(()).await
        })
        .await
    }

    /// Deletes the beacons of replicas without a heartbeat since `before`.
    ///
    /// # Errors
    ///
    /// Fails if the database is unavailable.
    pub async fn feed_beacons_forget(&self, before: Timestamp) -> Result<(), Error> {
        self.idempotent("feed_beacons_forget", move |mut tx| async move {
            let delete = diesel::delete(feed_beacons::table).filter(feed_beacons::at.lt(to_pg(before)));
            tx.execute(delete).await?;
            tx.commit(()).await
        })
        .await
    }
}

impl Tx {
    /// Starts a new history, which invalidates the cursors of the previous one.
    ///
    /// # Errors
    ///
    /// Fails if the database is unavailable.
    pub async fn feed_history_insert(&mut self, now: Timestamp) -> Result<(), Error> {
        let (id, began_at) = (feed_histories::id.eq(clock::new_uuid()), feed_histories::began_at.eq(to_pg(now)));
        // The previous one was dated by the database's own clock, which may be ahead.
        self.execute(diesel::delete(feed_histories::table)).await?;
        self.execute(diesel::insert_into(feed_histories::table).values((id, began_at))).await?;
        Ok(())
    }
}

statement! {
    /// The database's present position; the row with the highest transaction number; and whether the known row exists.
    ///
    /// Rows restored from a dump of another server have that server's transaction numbers, which may be higher than any
    /// here.
    FeedPosition -> PositionRow =
    "WITH present AS MATERIALIZED (SELECT pg_current_snapshot()::text AS snapshot,
         (SELECT md5(concat_ws(' ', id, (SELECT system_identifier FROM pg_control_system()),
           (SELECT oid FROM pg_database WHERE datname = current_database())))::uuid
           FROM feed_histories ORDER BY began_at DESC, id LIMIT 1) AS history,
         left(pg_walfile_name(pg_current_wal_lsn()), 8) AS timeline, now() AS at)
     SELECT present.snapshot, present.history, present.timeline, present.at AS read_at, r.xid, r.id, r.access_expires_at,
         EXISTS (SELECT FROM revocations WHERE xid = "
    [xid: Option<i64> as sql::Nullable<sql::BigInt>]
    " AND id = "
    [id: Option<Uuid> as sql::Nullable<sql::Uuid>]
    ") AS has_known
     FROM present LEFT JOIN (SELECT xid, id, access_expires_at FROM revocations
         WHERE xid < pg_snapshot_xmax(pg_current_snapshot())::text::bigint ORDER BY xid DESC LIMIT 1) AS r ON true"
}

statement! {
    /// A page of revocations that some access token may outlive, ordered by the expiry of the last such token.
    FeedPage -> FeedRow =
    "SELECT r.xid, r.id, r.project_id, r.user_id, r.at, r.reason, r.session_id, r.is_impersonation, r.user_epoch,
         r.spared_session_id, r.project_epoch, r.signing_key_id, r.server_key_id, r.access_expires_at
     FROM revocations AS r WHERE (r.access_expires_at, r.id) > ("
    [after: PgTimestamp as sql::Timestamptz]
    ", "
    [after_id: Uuid as sql::Uuid]
    ") ORDER BY r.access_expires_at, r.id LIMIT "
    [rows_max: i64 as sql::BigInt]
    ""
}

statement! {
    /// Unseen rows: each as soon as its transaction has committed, in any order. Those from a transaction number on,
    /// lowest first; and earlier ones that were in progress, which are few, however long a transaction is held open.
    ///
    /// Only up to the present snapshot: rows restored from a dump of another server have that server's transaction
    /// numbers.
    FeedNext -> FeedNextRow =
    "WITH present AS MATERIALIZED (SELECT pg_current_snapshot()::text AS snapshot,
         (SELECT md5(concat_ws(' ', id, (SELECT system_identifier FROM pg_control_system()),
           (SELECT oid FROM pg_database WHERE datname = current_database())))::uuid
           FROM feed_histories ORDER BY began_at DESC, id LIMIT 1) AS history,
         left(pg_walfile_name(pg_current_wal_lsn()), 8) AS timeline, now() AS at)
     SELECT present.snapshot, present.history, present.timeline, present.at AS read_at, r.xid, r.id, r.project_id, r.user_id, r.at,
         r.reason, r.session_id, r.is_impersonation, r.user_epoch, r.spared_session_id, r.project_epoch, r.signing_key_id,
         r.server_key_id, r.access_expires_at
     FROM present LEFT JOIN ((SELECT * FROM revocations WHERE xid >= "
    [from: i64 as sql::BigInt]
    " AND xid < pg_snapshot_xmax(pg_current_snapshot())::text::bigint ORDER BY xid LIMIT "
    [rows_max: i64 as sql::BigInt]
    ") UNION ALL (SELECT * FROM revocations WHERE xid = ANY("
    [under_way: Vec<i64> as sql::Array<sql::BigInt>]
    ") LIMIT "
    [under_way_rows_max: i64 as sql::BigInt]
    ")) AS r ON true"
}

statement! {
    /// Writes an empty message to the write-ahead log, and no row: nothing is left to vacuum, whatever snapshot another
    /// application holds. Returns the transaction and the server.
    FeedBeat -> BeatRow =
    "SELECT pg_current_xact_id()::text::bigint AS xid,
         (SELECT md5(concat_ws(' ', id, (SELECT system_identifier FROM pg_control_system()),
           (SELECT oid FROM pg_database WHERE datname = current_database())))::uuid
           FROM feed_histories ORDER BY began_at DESC, id LIMIT 1) AS history,
         left(pg_walfile_name(pg_current_wal_lsn()), 8) AS timeline
     FROM pg_logical_emit_message(true, 'sessiond', ''::text)"
}

/// The position of a reading: the snapshot; the history, distinct from that of every copy of the database; the timeline
/// of the write-ahead log; and the time.
#[derive(Clone, QueryableByName)]
struct PresentRow {
    #[diesel(sql_type = sql::Text)]
    snapshot: String,
    #[diesel(sql_type = sql::Nullable<sql::Uuid>)]
    history: Option<Uuid>,
    #[diesel(sql_type = sql::Text)]
    timeline: String,
    #[diesel(sql_type = sql::Timestamptz)]
    read_at: PgTimestamp,
}

#[derive(QueryableByName)]
struct PositionRow {
    #[diesel(embed)]
    present: PresentRow,
    #[diesel(sql_type = sql::Nullable<sql::BigInt>)]
    xid: Option<i64>,
    #[diesel(sql_type = sql::Nullable<sql::Uuid>)]
    id: Option<Uuid>,
    #[diesel(sql_type = sql::Nullable<sql::Timestamptz>)]
    access_expires_at: Option<PgTimestamp>,
    #[diesel(sql_type = sql::Bool)]
    has_known: bool,
}

#[derive(QueryableByName)]
struct FeedNextRow {
    #[diesel(embed)]
    present: PresentRow,
    #[diesel(embed)]
    revocation: FeedRow,
}

#[derive(QueryableByName)]
struct BeatRow {
    #[diesel(sql_type = sql::BigInt)]
    xid: i64,
    #[diesel(sql_type = sql::Nullable<sql::Uuid>)]
    history: Option<Uuid>,
    #[diesel(sql_type = sql::Text)]
    timeline: String,
}

/// A row of `revocations`; all columns are null if there is none.
#[derive(QueryableByName)]
struct FeedRow {
    #[diesel(sql_type = sql::Nullable<sql::BigInt>)]
    xid: Option<i64>,
    #[diesel(sql_type = sql::Nullable<sql::Uuid>)]
    id: Option<Uuid>,
    #[diesel(sql_type = sql::Nullable<sql::Text>)]
    project_id: Option<String>,
    #[diesel(sql_type = sql::Nullable<sql::Text>)]
    user_id: Option<String>,
    #[diesel(sql_type = sql::Nullable<sql::Timestamptz>)]
    at: Option<PgTimestamp>,
    #[diesel(sql_type = sql::Nullable<sql::SmallInt>)]
    reason: Option<i16>,
    #[diesel(sql_type = sql::Nullable<sql::Uuid>)]
    session_id: Option<Uuid>,
    #[diesel(sql_type = sql::Nullable<sql::Bool>)]
    is_impersonation: Option<bool>,
    #[diesel(sql_type = sql::Nullable<sql::BigInt>)]
    user_epoch: Option<i64>,
    #[diesel(sql_type = sql::Nullable<sql::Uuid>)]
    spared_session_id: Option<Uuid>,
    #[diesel(sql_type = sql::Nullable<sql::BigInt>)]
    project_epoch: Option<i64>,
    #[diesel(sql_type = sql::Nullable<sql::Uuid>)]
    signing_key_id: Option<Uuid>,
    #[diesel(sql_type = sql::Nullable<sql::Uuid>)]
    server_key_id: Option<Uuid>,
    #[diesel(sql_type = sql::Nullable<sql::Timestamptz>)]
    access_expires_at: Option<PgTimestamp>,
}

impl PresentRow {
    fn reading(
        &self,
        revocations: Vec<PublishedRevocation>,
        newest: Option<Newest>,
        connection: u64,
    ) -> Result<FeedReading, Error> {
        let origin = origin(self.history, &self.timeline)?;
        let snapshot = self.snapshot.parse().map_err(|()| bad("snapshot"))?;
        let (at, extent) = (from_pg(self.read_at), Extent::Whole);
        Ok(FeedReading { revocations, origin, snapshot, at, newest, lacks_newest: false, connection, extent })
    }
}

impl FeedRow {
    fn newest(&self) -> Option<Newest> {
        newest(self.xid, self.id, self.access_expires_at)
    }

    /// Parses the row; `None` if there is none, or if it concerns only an erased user.
    fn into_published(self) -> Option<Result<PublishedRevocation, Error>> {
        let (id, project, at, reason) = (self.id?, self.project_id?, self.at?, self.reason?);
        let access_expires_at = self.access_expires_at?;
        let user = self.user_id.as_deref().and_then(UserId::parse);
        let spared = self.spared_session_id.map(SessionId::from_uuid);
        let keys = (self.signing_key_id, self.server_key_id);
        let ended = match (self.session_id, self.user_epoch, self.project_epoch, keys) {
            (Some(session), ..) => RevocationTarget::Session {
                id: SessionId::from_uuid(session),
                is_impersonation: self.is_impersonation.unwrap_or_default(),
            },
            // An erased user's sessions were revoked one by one.
            (_, Some(epoch), ..) => RevocationTarget::User { user: user.clone()?, epoch, spared },
            (_, _, Some(epoch), _) => RevocationTarget::Project { epoch },
            (_, _, _, (Some(key), _)) => RevocationTarget::SigningKey(KeyId::from_uuid(key)),
            (_, _, _, (_, Some(key))) => RevocationTarget::ServerKey(KeyId::from_uuid(key)),
            (None, None, None, (None, None)) => return None,
        };
        let bad = |column| Error::Inconsistent { table: "revocations", column, row: id.to_string() };
        let read = || {
            Ok(PublishedRevocation {
                // A row without a transaction number predates the numbers.
                place: FeedPlace { xid: self.xid.unwrap_or(0).try_into().map_err(|_| bad("xid"))?, id },
                project: ProjectId::parse(&project).ok_or_else(|| bad("project_id"))?,
                ended,
                user,
                at: from_pg(at),
                reason: reason_of(reason).ok_or_else(|| bad("reason"))?,
                access_expires_at: from_pg(access_expires_at),
            })
        };
        Some(read())
    }
}

/// The place of a row; `None` if there is none, or if it predates transaction numbers.
fn newest(xid: Option<i64>, id: Option<Uuid>, access_expires_at: Option<PgTimestamp>) -> Option<Newest> {
    let place = FeedPlace { xid: xid?.try_into().ok()?, id: id? };
    Some(Newest { place, access_expires_at: from_pg(access_expires_at?) })
}

fn origin(history: Option<Uuid>, timeline: &str) -> Result<FeedOrigin, Error> {
    let timeline = u32::from_str_radix(timeline, 16).map_err(|_| bad("timeline"))?;
    Ok(FeedOrigin { history: history.ok_or_else(|| bad("id"))?, timeline })
}

/// How much of the unseen part these rows are, judged by their transaction numbers; and, if they are not all, the
/// transaction at which they stop, of which there may be more rows.
fn extent(xids: impl Iterator<Item = i64>, from: i64, rows_max: usize) -> (Extent, Option<i64>) {
    let (ahead, behind): (Vec<i64>, Vec<i64>) = xids.partition(|xid| *xid >= from);
    match (ahead.iter().min(), ahead.iter().max()) {
        _ if behind.len() >= rows_max => (Extent::TooMuch, None),
        (Some(first), Some(last)) if ahead.len() >= rows_max => {
            if first == last {
                (Extent::TooMuch, None)
            } else {
                (Extent::Part, Some(*last))
            }
        }
        _ => (Extent::Whole, None),
    }
}

fn bad(column: &'static str) -> Error {
    Error::Inconsistent { table: "feed_histories", column, row: "the feed".to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_snapshot_says_what_it_does_not_show() {
        let read = |text: &str| text.parse::<PgSnapshot>();
        assert_eq!(read("740:745:741,743"), Ok(PgSnapshot { xmin: 740, xmax: 745, under_way: vec![741, 743] }));
        assert_eq!(read("740:740:"), Ok(PgSnapshot { xmin: 740, xmax: 740, under_way: vec![] }));
        for bad in ["", "740", "740:745", "x:1:", "1:2:x"] {
            assert_eq!(read(bad), Err(()), "{bad}");
        }
        let snapshot = read("740:745:741,743").expect("a snapshot");
        assert_eq!(snapshot.clone().before(743), read("740:743:741").expect("a snapshot"));
        assert_eq!(snapshot.clone().before(739), read("739:739:").expect("a snapshot"));
        assert_eq!(snapshot.clone().before(800), snapshot);
    }

    #[test]
    fn a_reading_that_is_full_goes_up_to_its_last_transaction() {
        let extent = |xids: &[i64]| extent(xids.iter().copied(), 10, 3);
        for whole in [&[][..], &[10, 11], &[10, 11, 3, 4]] {
            assert_eq!(extent(whole), (Extent::Whole, None));
        }
        assert_eq!(extent(&[10, 11, 12]), (Extent::Part, Some(12)));
        assert_eq!(extent(&[12, 10, 12, 4]), (Extent::Part, Some(12)), "of it there may be more");
        for too_much in [&[10, 10, 10][..], &[4, 4, 4], &[3, 4, 4, 10, 11, 12]] {
            assert_eq!(extent(too_much), (Extent::TooMuch, None));
        }
    }
}
