//! Reads the feed from the database: each revocation once, and the position reached.
//!
//! Each writer numbers its entries in the order of its commits (`writers`), so new is what is behind the last number that was
//! read of each writer, and no order across writers is needed. A long transaction elsewhere delays no other revocation: it
//! holds back only the entries of its own connection, which runs nothing else meanwhile.

use std::collections::BTreeMap;
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
use super::events::EventKind;
use super::publish::FeedPlace;
use super::publish::PublishedRevocation;
use super::schema::feed_beacons;
use super::schema::feed_histories;
use super::statement::statement;
use super::writers::WriterId;
use sessiond_core::clock;
use sessiond_core::clock::Timestamp;
use sessiond_core::id::KeyId;
use sessiond_core::id::ProjectId;
use sessiond_core::id::SessionId;
use sessiond_core::id::UserId;
use sessiond_core::session::EndedBy;
use sessiond_core::session::revoked::RevocationTarget;

/// A snapshot of the database: which transactions it shows (`pg_snapshot`).
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
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
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FeedOrigin {
    /// The history; a restore from backup starts a new one.
    pub history: Uuid,
    /// The timeline of the write-ahead log; a promoted server starts a new one.
    pub timeline: u32,
}

/// Where and how a slot was read.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct SlotSnapshot {
    /// The number of the slot.
    pub slot: i16,
    /// The node of a divided database, by its `system_identifier`. Transactions of another one have nothing to do with it.
    pub node: i64,
    /// What the reading of the slot showed.
    pub snapshot: PgSnapshot,
}

/// A transaction of our own at the node of a slot. It wrote to the log, and was confirmed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SlotBeat {
    /// The number of the slot.
    pub slot: i16,
    /// The node, as in [`SlotSnapshot`].
    pub node: i64,
    /// The transaction, which every later snapshot of the same server shows.
    pub xid: u64,
}

/// An entry of a writer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WriterEntry {
    /// The writer.
    pub writer: WriterId,
    /// Its number for the entry; zero if it has none yet.
    pub seq: u32,
    /// Until when a verifier may hold a token that the entry revokes: it is not swept before.
    pub access_expires_at: Timestamp,
}

/// Which database was read, and when.
#[derive(Clone, Debug)]
pub struct FeedPresent {
    /// The history and timeline.
    pub origin: FeedOrigin,
    /// The snapshot of each slot, to recognise a beat.
    pub snapshots: Vec<SlotSnapshot>,
    /// The time, by the database's clock.
    pub at: Timestamp,
    /// The number of the database connection, unique within the process.
    pub connection: u64,
}

/// The result of reading the feed.
#[derive(Clone, Debug)]
pub struct FeedReading {
    /// What was read, and when.
    pub present: FeedPresent,
    /// The new revocations.
    pub revocations: Vec<PublishedRevocation>,
    /// The new entries, ordered by writer and number: those of `revocations`, and those that concern only erased users.
    pub entries: Vec<WriterEntry>,
    /// How much of what is new was read.
    pub extent: Extent,
}

/// The writers, at one moment.
#[derive(Clone, Debug)]
pub struct FeedWriters {
    /// What was read, and when.
    pub present: FeedPresent,
    /// The newest entry of each writer.
    pub newest: Vec<WriterEntry>,
}

/// How much of what is new was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extent {
    /// All of it.
    Whole,
    /// The first entries: read on at once.
    Part,
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

    /// Returns all writers, and the newest entry of each.
    ///
    /// # Errors
    ///
    /// Fails if the database is unavailable.
    pub async fn feed_writers(&self) -> Result<FeedWriters, Error> {
        self.idempotent("feed_writers", move |mut tx| async move {
            let (present, rows) = if tx.slots().count() == 1 {
                let rows = tx.rows(FeedWritersRead {}).await?;
                let [first, ..] = rows.as_slice() else { return Err(bad("id")) };
                let present = first.present.read(tx.connection())?;
                (present, rows.into_iter().map(|row| row.newest).collect::<Vec<_>>())
            } else {
                let history = tx.feed_history().await?;
                let rows = tx.rows(SlotWritersRead {}).await?;
                let (slots, rows) = rows.into_iter().map(|row| (row.slot, row.newest)).unzip();
                (tx.present(history, slots)?, rows)
            };
            let newest = rows.into_iter().filter_map(EntryRow::into_entry).collect::<Result<_, _>>()?;
            tx.commit(FeedWriters { present, newest }).await
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

    /// Reads the entries behind the last known number of each writer, each as soon as its transaction has committed. If
    /// there are `rows_max` or more, reads the first ones; see [`Extent`].
    ///
    /// # Errors
    ///
    /// Fails if the database is unavailable.
    pub async fn feed_next(&self, known: &BTreeMap<WriterId, u32>, rows_max: usize) -> Result<FeedReading, Error> {
        let columns = known.iter().map(|(writer, seq)| (writer.to_column(), i32::try_from(*seq).unwrap_or(i32::MAX)));
        let (writers, seqs): (Vec<i64>, Vec<i32>) = columns.unzip();
        self.idempotent("feed_next", move |mut tx| {
            let (writers, seqs) = (writers.clone(), seqs.clone());
            async move {
                let (present, rows, is_whole) = if tx.slots().count() == 1 {
                    let rows = tx.rows(FeedNext { writers, seqs, rows_max: limit(rows_max) }).await?;
                    let [first, ..] = rows.as_slice() else { return Err(bad("id")) };
                    let present = first.present.read(tx.connection())?;
                    let rows: Vec<FeedRow> = rows.into_iter().map(|row| row.revocation).collect();
                    let is_whole = rows.iter().filter(|row| row.writer.is_some()).count() < rows_max;
                    (present, rows, is_whole)
                } else {
                    // Of each slot the first entries, so that what is read of each writer has no gap.
                    let each_max = rows_max.div_ceil(usize::from(tx.slots().count()));
                    let history = tx.feed_history().await?;
                    let rows = tx.rows(SlotFeedNext { writers, seqs, rows_max: limit(each_max) }).await?;
                    let (slots, mut rows): (Vec<_>, Vec<_>) =
                        rows.into_iter().map(|row| (row.slot, row.revocation)).unzip();
                    let mut counts = BTreeMap::<i16, usize>::new();
                    for (slot, _) in slots.iter().zip(&rows).filter(|(_, row)| row.writer.is_some()) {
                        *counts.entry(slot.slot).or_default() += 1;
                    }
                    let is_whole = counts.values().all(|count| *count < each_max);
                    // The slots are read concurrently.
                    rows.sort_unstable_by_key(|row| (row.writer, row.seq));
                    (tx.present(history, slots)?, rows, is_whole)
                };
                let entries = rows.iter().filter_map(|row| row.entry().into_entry());
                let entries: Vec<WriterEntry> = entries.collect::<Result<_, _>>()?;
                // Counted by rows, not by parsed rows: those of erased users are left out.
                let extent = if is_whole { Extent::Whole } else { Extent::Part };
                let revocations = rows.into_iter().filter_map(FeedRow::into_published);
                let revocations = revocations.collect::<Result<_, _>>()?;
                tx.commit(FeedReading { present, revocations, entries, extent }).await
            }
        })
        .await
    }

    /// Writes to the write-ahead log of each node, but to no table, which proves that the server takes writes. Returns the
    /// transactions, by slot.
    ///
    /// # Errors
    ///
    /// Fails if the database is unavailable, or does not confirm commits.
    pub async fn feed_beat(&self) -> Result<(FeedOrigin, Vec<SlotBeat>), Error> {
        self.idempotent("feed_beat", move |mut tx| async move {
            if tx.slots().count() == 1 {
                let row = tx.rows(FeedBeat {}).await?.into_iter().next().ok_or_else(|| bad("id"))?;
                let xid = row.xid.try_into().map_err(|_| bad("xid"))?;
                let beat = SlotBeat { slot: 0, node: 0, xid };
                return tx.commit((origin(row.history, &row.timeline)?, vec![beat])).await;
            }
            let history = tx.feed_history().await?;
            let rows = tx.rows(SlotFeedBeat {}).await?;
            let read = |row: &SlotBeatRow| {
                let xid = row.xid.try_into().map_err(|_| bad("xid"))?;
                Ok(SlotBeat { slot: row.slot.slot, node: row.slot.system, xid })
            };
            let beats = rows.iter().map(read).collect::<Result<_, Error>>()?;
            // Behind the beat: what the node knows now, it knows when it reads what the beat is a bound for.
            if tx.slots().is_divided() && tx.rows(MoveUndecided {}).await? == [true] {
                return Err(Error::unavailable(
                    "feed_beat",
                    "the node that is asked may not know yet where a slot has moved",
                ));
            }
            let origin = tx.present(history, rows.into_iter().map(|row| row.slot).collect())?.origin;
            tx.commit((origin, beats)).await
        })
        .await
    }

    /// Starts a new history, unless another one has been started since `last` was read.
    ///
    /// # Errors
    ///
    /// Fails if the database is unavailable.
    pub async fn feed_history_begin(&self, last: FeedOrigin, now: Timestamp) -> Result<(), Error> {
        if self.feed_writers().await?.present.origin != last {
            return Ok(());
        }
        self.transact("feed_history_begin", move |mut tx| async move {
            tx.feed_history_insert(EndedBy::Sessiond, now).await?;
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
    /// Reads the history of a divided database, of which every node has a copy.
    async fn feed_history(&mut self) -> Result<Uuid, Error> {
        self.rows(FeedHistory {}).await?.into_iter().next().ok_or_else(|| bad("id"))
    }

    /// Which database was read, by what each slot showed.
    ///
    /// # Errors
    ///
    /// Fails if the database does not have the slots that this server knows.
    fn present(&self, history: Uuid, mut slots: Vec<SlotRow>) -> Result<FeedPresent, Error> {
        slots.sort_unstable_by_key(|row| row.slot);
        slots.dedup_by_key(|row| row.slot);
        let count = u16::try_from(slots.len()).map_err(|_| bad("slot"))?;
        self.slots().note(count).map_err(|changed| Error::unavailable(self.operation(), changed.to_string()))?;
        // Its clock is the one by which all replicas go, whichever node they ask.
        let [first, ..] = slots.as_slice() else { return Err(bad("slot")) };
        let mut nodes = slots
            .iter()
            .map(|row| Ok((row.system, u32::from_str_radix(&row.timeline, 16).map_err(|_| bad("timeline"))?)))
            .collect::<Result<Vec<_>, Error>>()?;
        nodes.sort_unstable();
        nodes.dedup();
        // A failover of any node is a fork of the whole.
        let mix = |history: u128, (system, timeline): &(i64, u32)| {
            const ODD: u128 = 0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835;
            let node = u128::from(system.cast_unsigned()) << 64 | u128::from(*timeline);
            (history.rotate_left(23) ^ node.wrapping_mul(ODD)).wrapping_mul(ODD)
        };
        let history = Uuid::from_u128(nodes.iter().fold(history.as_u128(), mix));
        let timeline = nodes.iter().map(|(_, timeline)| *timeline).max().unwrap_or_default();
        let snapshots = slots.iter().map(|row| {
            let snapshot = row.snapshot.parse().map_err(|()| bad("snapshot"))?;
            Ok(SlotSnapshot { slot: row.slot, node: row.system, snapshot })
        });
        Ok(FeedPresent {
            origin: FeedOrigin { history, timeline },
            snapshots: snapshots.collect::<Result<_, Error>>()?,
            at: from_pg(first.read_at),
            connection: self.connection(),
        })
    }

    /// Starts a new history, which invalidates the cursors of the previous one. Recorded in the audit of every project.
    ///
    /// # Errors
    ///
    /// Fails if the database is unavailable.
    pub async fn feed_history_insert(&mut self, by: EndedBy, now: Timestamp) -> Result<(), Error> {
        let (id, began_at) = (feed_histories::id.eq(clock::new_uuid()), feed_histories::began_at.eq(to_pg(now)));
        // The previous one was dated by the database's own clock, which may be ahead.
        self.execute(diesel::delete(feed_histories::table)).await?;
        self.execute(diesel::insert_into(feed_histories::table).values((id, began_at))).await?;
        self.event_insert_everywhere(&EventKind::HistoryStarted, by, now).await
    }
}

/// A statement with the feed's history, for `HISTORY`: that of one database of one server. A copy of it has another one.
macro_rules! statement_with_history {
    ($(#[$doc:meta])* $name:ident -> $row:ident = $before:literal HISTORY $($rest:tt)+) => {
        statement! {
            $(#[$doc])*
            $name -> $row =
            $before
            "(SELECT md5(concat_ws(' ', id, (SELECT system_identifier FROM pg_control_system()),
                (SELECT oid FROM pg_database WHERE datname = current_database())))::uuid
                FROM feed_histories ORDER BY began_at DESC, id LIMIT 1) AS history"
            $($rest)+
        }
    };
}

statement_with_history! {
    /// The writers, each with its newest entry. Of a closed one the last number is known even when its entries are swept.
    FeedWritersRead -> WriterRow =
    "WITH present AS MATERIALIZED (SELECT pg_current_snapshot()::text AS snapshot,
         " HISTORY ",
         left(pg_walfile_name(pg_current_wal_lsn()), 8) AS timeline, now() AS at)
     SELECT present.snapshot, present.history, present.timeline, present.at AS read_at, w.id AS writer,
         coalesce(w.last, r.seq, 0) AS seq, r.access_expires_at
     FROM present LEFT JOIN feed_writers AS w ON true LEFT JOIN LATERAL (SELECT seq, access_expires_at FROM revocations
         WHERE slot = w.slot AND writer = w.id AND writer <> 0 ORDER BY seq DESC LIMIT 1) AS r ON true"
}

statement! {
    /// A page of revocations that some access token may outlive, ordered by the expiry of the last such token.
    FeedPage -> FeedRow =
    "SELECT r.writer, r.seq, r.id, r.project_id, r.user_id, r.at, r.reason, r.session_id, r.is_impersonation, r.user_epoch,
         r.spared_session_id, r.project_epoch, r.signing_key_id, r.server_key_id, r.superseded_session_id, r.session_epoch,
         r.access_expires_at
     FROM revocations AS r WHERE (r.access_expires_at, r.id) > ("
    [after: PgTimestamp as sql::Timestamptz]
    ", "
    [after_id: Uuid as sql::Uuid]
    ") ORDER BY r.access_expires_at, r.id LIMIT "
    [rows_max: i64 as sql::BigInt]
    ""
}

statement_with_history! {
    /// The entries behind the known numbers, in order. Only those of registered writers: rows from a dump of another server
    /// may name others.
    FeedNext -> FeedNextRow =
    "WITH present AS MATERIALIZED (SELECT pg_current_snapshot()::text AS snapshot,
         " HISTORY ",
         left(pg_walfile_name(pg_current_wal_lsn()), 8) AS timeline, now() AS at)
     SELECT present.snapshot, present.history, present.timeline, present.at AS read_at, r.writer, r.seq, r.id, r.project_id,
         r.user_id, r.at, r.reason, r.session_id, r.is_impersonation, r.user_epoch, r.spared_session_id, r.project_epoch,
         r.signing_key_id, r.server_key_id, r.superseded_session_id, r.session_epoch, r.access_expires_at
     FROM present LEFT JOIN (SELECT r.* FROM (SELECT w.slot, w.id, coalesce(k.seq, 0) AS seq FROM feed_writers AS w
             LEFT JOIN unnest("
    [writers: Vec<i64> as sql::Array<sql::BigInt>]
    ", "
    [seqs: Vec<i32> as sql::Array<sql::Integer>]
    ") AS k (writer, seq) ON k.writer = w.id WHERE w.last IS NULL OR w.last > coalesce(k.seq, 0)) AS w
         CROSS JOIN LATERAL (SELECT * FROM revocations WHERE slot = w.slot AND writer = w.id AND writer <> 0 AND seq > w.seq
             ORDER BY seq LIMIT "
    [rows_max: i64 as sql::BigInt]
    ") AS r ORDER BY r.writer, r.seq LIMIT $3) AS r ON true"
}

statement_with_history! {
    /// Writes an empty message to the write-ahead log, and no row: nothing is left to vacuum, whatever snapshot another
    /// application holds. Returns the transaction and the server.
    FeedBeat -> BeatRow =
    "SELECT pg_current_xact_id()::text::bigint AS xid,
         " HISTORY ",
         left(pg_walfile_name(pg_current_wal_lsn()), 8) AS timeline
     FROM pg_logical_emit_message(true, 'sessiond', ''::text)"
}

statement! {
    /// The history of a divided database: the same at every node, and another one than that of a copy beside it, which has another
    /// name. Copies on other servers differ by their nodes.
    FeedHistory -> Uuid as sql::Uuid =
    "SELECT md5(concat_ws(' ', id, current_database()))::uuid FROM feed_histories ORDER BY began_at DESC, id LIMIT 1"
}

// The next three read each slot at the node that has it. Only functions in the list of columns run there: one in FROM, and one
// in a subquery, run at the node that is asked, whose transactions have nothing to do with those of the others.

statement! {
    /// As [`FeedWritersRead`], for several slots.
    SlotWritersRead -> SlotWriterRow =
    "SELECT p.slot, (pg_control_system()).system_identifier AS system, clock_timestamp() AS read_at,
         pg_current_snapshot()::text AS snapshot, left(pg_walfile_name(pg_current_wal_lsn()), 8) AS timeline,
         w.id AS writer, coalesce(w.last, r.seq, 0) AS seq, r.access_expires_at
     FROM slots AS p LEFT JOIN feed_writers AS w ON w.slot = p.slot
         LEFT JOIN LATERAL (SELECT seq, access_expires_at FROM revocations
             WHERE slot = w.slot AND writer = w.id AND writer <> 0 ORDER BY seq DESC LIMIT 1) AS r ON true"
}

statement! {
    /// As [`FeedNext`], for several slots. At most `rows_max` entries of each.
    SlotFeedNext -> SlotNextRow =
    "SELECT p.slot, (pg_control_system()).system_identifier AS system, clock_timestamp() AS read_at,
         pg_current_snapshot()::text AS snapshot, left(pg_walfile_name(pg_current_wal_lsn()), 8) AS timeline,
         r.writer, r.seq, r.id, r.project_id, r.user_id, r.at, r.reason, r.session_id, r.is_impersonation, r.user_epoch,
         r.spared_session_id, r.project_epoch, r.signing_key_id, r.server_key_id, r.superseded_session_id, r.session_epoch,
         r.access_expires_at
     FROM slots AS p LEFT JOIN LATERAL (SELECT r.* FROM (SELECT w.slot, w.id, coalesce(k.seq, 0) AS seq FROM feed_writers AS w
             LEFT JOIN unnest("
    [writers: Vec<i64> as sql::Array<sql::BigInt>]
    ", "
    [seqs: Vec<i32> as sql::Array<sql::Integer>]
    ") AS k (writer, seq) ON k.writer = w.id WHERE w.slot = p.slot AND (w.last IS NULL OR w.last > coalesce(k.seq, 0))) AS w
         CROSS JOIN LATERAL (SELECT * FROM revocations WHERE slot = w.slot AND writer = w.id AND writer <> 0 AND seq > w.seq
             ORDER BY seq LIMIT "
    [rows_max: i64 as sql::BigInt]
    ") AS r ORDER BY r.writer, r.seq LIMIT $3) AS r ON true"
}

statement! {
    /// As [`FeedBeat`], for several slots.
    SlotFeedBeat -> SlotBeatRow =
    "SELECT p.slot, (pg_control_system()).system_identifier AS system, clock_timestamp() AS read_at,
         pg_current_snapshot()::text AS snapshot, left(pg_walfile_name(pg_current_wal_lsn()), 8) AS timeline,
         pg_current_xact_id()::text::bigint AS xid, pg_logical_emit_message(true, 'sessiond', ''::text) IS NOT NULL AS is_logged
     FROM slots AS p"
}

statement! {
    /// Whether the node that is asked has prepared a change of the places of shards, and does not know how it was decided. Until then
    /// it reads the old copy of a shard that has moved, at a node that looks as alive as the new one.
    MoveUndecided -> bool as sql::Bool =
    "SELECT EXISTS (SELECT FROM pg_locks WHERE pid IS NULL AND locktype = 'relation'
         AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
         AND relation = 'pg_catalog.pg_dist_placement'::regclass)"
}

/// What the node of a slot shows.
#[derive(QueryableByName)]
struct SlotRow {
    #[diesel(sql_type = sql::SmallInt)]
    slot: i16,
    #[diesel(sql_type = sql::BigInt)]
    system: i64,
    #[diesel(sql_type = sql::Timestamptz)]
    read_at: PgTimestamp,
    #[diesel(sql_type = sql::Text)]
    snapshot: String,
    #[diesel(sql_type = sql::Text)]
    timeline: String,
}

#[derive(QueryableByName)]
struct SlotWriterRow {
    #[diesel(embed)]
    slot: SlotRow,
    #[diesel(embed)]
    newest: EntryRow,
}

#[derive(QueryableByName)]
struct SlotNextRow {
    #[diesel(embed)]
    slot: SlotRow,
    #[diesel(embed)]
    revocation: FeedRow,
}

#[derive(QueryableByName)]
struct SlotBeatRow {
    #[diesel(embed)]
    slot: SlotRow,
    #[diesel(sql_type = sql::BigInt)]
    xid: i64,
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
struct WriterRow {
    #[diesel(embed)]
    present: PresentRow,
    #[diesel(embed)]
    newest: EntryRow,
}

/// An entry of a writer; all columns are null if there is no writer.
#[derive(QueryableByName)]
struct EntryRow {
    #[diesel(sql_type = sql::Nullable<sql::BigInt>)]
    writer: Option<i64>,
    #[diesel(sql_type = sql::Nullable<sql::Integer>)]
    seq: Option<i32>,
    #[diesel(sql_type = sql::Nullable<sql::Timestamptz>)]
    access_expires_at: Option<PgTimestamp>,
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
    writer: Option<i64>,
    #[diesel(sql_type = sql::Nullable<sql::Integer>)]
    seq: Option<i32>,
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
    #[diesel(sql_type = sql::Nullable<sql::Uuid>)]
    superseded_session_id: Option<Uuid>,
    #[diesel(sql_type = sql::Nullable<sql::BigInt>)]
    session_epoch: Option<i64>,
    #[diesel(sql_type = sql::Nullable<sql::Timestamptz>)]
    access_expires_at: Option<PgTimestamp>,
}

impl PresentRow {
    fn read(&self, connection: u64) -> Result<FeedPresent, Error> {
        let snapshot = self.snapshot.parse().map_err(|()| bad("snapshot"))?;
        let (origin, at) = (origin(self.history, &self.timeline)?, from_pg(self.read_at));
        let snapshots = vec![SlotSnapshot { slot: 0, node: 0, snapshot }];
        Ok(FeedPresent { origin, snapshots, at, connection })
    }
}

impl EntryRow {
    /// Parses the row; `None` if there is no writer. An entry that was swept matters to no verifier.
    fn into_entry(self) -> Option<Result<WriterEntry, Error>> {
        let column = self.writer?;
        let bad = |column| Error::Inconsistent { table: "revocations", column, row: "the feed".to_owned() };
        let read = || {
            let access_expires_at = self.access_expires_at.map_or(Timestamp::from_seconds(0), from_pg);
            Ok(WriterEntry {
                writer: WriterId::of_column(column).ok_or_else(|| bad("writer"))?,
                seq: self.seq.and_then(|seq| seq.try_into().ok()).ok_or_else(|| bad("seq"))?,
                access_expires_at,
            })
        };
        Some(read())
    }
}

impl FeedRow {
    const fn entry(&self) -> EntryRow {
        EntryRow { writer: self.writer, seq: self.seq, access_expires_at: self.access_expires_at }
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
            (None, None, None, (None, None)) => RevocationTarget::Superseded {
                id: SessionId::from_uuid(self.superseded_session_id?),
                session_epoch: self.session_epoch?,
            },
        };
        let bad = |column| Error::Inconsistent { table: "revocations", column, row: id.to_string() };
        let read = || {
            Ok(PublishedRevocation {
                place: FeedPlace {
                    writer: self.writer.and_then(WriterId::of_column).ok_or_else(|| bad("writer"))?,
                    seq: self.seq.and_then(|seq| seq.try_into().ok()).ok_or_else(|| bad("seq"))?,
                    id,
                },
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

fn origin(history: Option<Uuid>, timeline: &str) -> Result<FeedOrigin, Error> {
    let timeline = u32::from_str_radix(timeline, 16).map_err(|_| bad("timeline"))?;
    Ok(FeedOrigin { history: history.ok_or_else(|| bad("id"))?, timeline })
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
        let shown: Vec<u64> = (738..747).filter(|xid| snapshot.shows(*xid)).collect();
        assert_eq!(shown, [738, 739, 740, 742, 744]);
    }
}
