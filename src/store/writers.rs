//! `feed_writers`: who numbers the entries of the feed. A writer is one database connection that writes to one slot. It runs one
//! transaction at a time and learns its outcome before it begins the next. So the order of a writer's numbers is the order of
//! its commits, and what any reader sees of a writer is its first numbers, without a gap. No order across writers is needed.
//!
//! - Only the connection that opened a writer numbers its entries, from memory, and goes on after a confirmed commit only. A
//!   connection that is lost, or whose last transaction failed or is in doubt, takes its writer with it. So no number is used
//!   twice: not after a crash, a failover or a restore either.
//! - It goes on only where its last entry is there. A database that was restored beneath a pooler, or a server that took over,
//!   may lack it: the connection then takes another writer. So no writer has a gap, whatever was lost.
//! - Each transaction that uses a number locks the writer's row (`FOR SHARE`, which leaves no dead row). Closing a writer
//!   takes a stronger lock first, and reads the last number afterwards: a transaction in progress is waited for or skipped. A
//!   transaction that finds its writer closed fails, and nothing is revoked without an entry.

use std::collections::BTreeMap;
use std::time::Duration;

use diesel::QueryableByName;
use diesel::pg::data_types::PgTimestamp;
use diesel::sql_types as sql;
use tokio::time::Instant;

use super::Tx;
use super::columns::to_pg;
use super::error::Error;
use super::slots::Slot;
use super::statement::statement;
use super::sweep::SweepPosition;
use super::wire::BEGIN;
use sessiond_core::clock;
use sessiond_core::clock::Timestamp;
use sessiond_core::session::retention;

/// How long a writer goes unused before its connection takes another one: well before it is closed.
const UNUSED_MAX: Duration = Duration::from_secs(retention::FEED_WRITER_IDLE.as_secs() / 2);

/// The greatest number of a writer; its connection then takes another one. A transaction has room beyond it.
const NUMBER_MAX: u32 = 1_000_000_000;

/// Identifies a writer: a random number below 2^48. Zero stands for revocations from before there were writers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WriterId(u64);

impl WriterId {
    /// How many bits it has.
    pub const BITS: u32 = 48;

    /// The writer with this number; only the lower 48 bits count.
    pub const fn from_number(number: u64) -> Self {
        Self(number & ((1 << Self::BITS) - 1))
    }

    /// Its number.
    pub const fn number(self) -> u64 {
        self.0
    }

    fn random() -> Self {
        Self::from_number(u64::from_be_bytes(clock::random()).max(1))
    }

    /// Its column.
    pub(super) fn to_column(self) -> i64 {
        i64::try_from(self.0).expect("48 bits")
    }

    /// Parses a column; `None` if it is out of range.
    pub(super) fn of_column(column: i64) -> Option<Self> {
        u64::try_from(column).ok().map(Self).filter(|id| Self::from_number(id.0) == *id)
    }
}

/// A connection's writers, by slot.
pub(super) type Writers = BTreeMap<Slot, Writer>;

/// A connection's writer for one slot.
#[derive(Clone, Copy, Debug)]
pub(super) struct Writer {
    id: WriterId,
    slot: Slot,
    /// Its last number; zero before the first.
    last: u32,
    used_at: Instant,
}

impl Writer {
    /// Its row.
    pub(super) const fn id(&self) -> WriterId {
        self.id
    }

    /// Its last number; the next is one more.
    pub(super) const fn last(&self) -> u32 {
        self.last
    }

    /// Records that the next numbers are used.
    pub(super) fn advance(&mut self, count: u32) {
        self.last += count;
        self.used_at = Instant::now();
    }

    /// Whether it may number more entries.
    pub(super) fn is_usable(&self) -> bool {
        self.last < NUMBER_MAX && self.used_at.elapsed() < UNUSED_MAX
    }
}

impl Tx {
    /// Opens a new writer for a slot. Its row is committed with the transaction, or at once by a single statement.
    pub(super) async fn writer_open(&mut self, slot: Slot) -> Result<Writer, Error> {
        let id = WriterId::random();
        let columns = format!("{}, now(), {}", id.number(), slot.to_column());
        let insert = format!("INSERT INTO feed_writers (id, opened_at, slot) VALUES ({columns})");
        let statements = match self.is_explicit() {
            true => insert,
            // Its commit need not wait: whatever keeps an entry of the writer keeps this row, which is earlier in the log.
            false => format!("{BEGIN}; SET LOCAL synchronous_commit = off; {insert}; COMMIT"),
        };
        self.batch(&statements).await?;
        Ok(Writer { id, slot, last: 0, used_at: Instant::now() })
    }

    /// Locks a writer until the end of the transaction.
    ///
    /// # Errors
    ///
    /// Fails if it cannot go on.
    pub(super) async fn writer_lock(&mut self, writer: Writer) -> Result<(), Error> {
        let last = i32::try_from(writer.last()).unwrap_or(i32::MAX);
        let open = self.rows(WriterLock { slot: writer.slot.to_column(), id: writer.id().to_column(), last }).await?;
        if open.is_empty() { Err(Error::unavailable(self.operation(), CLOSED)) } else { Ok(()) }
    }

    /// Closes writers of the slot that is swept that were opened before `idle`, and have written nothing since, at most
    /// `rows_max`. Returns how many.
    ///
    /// # Errors
    ///
    /// Fails if the database is unavailable.
    pub async fn feed_writers_close(
        &mut self,
        from: &SweepPosition,
        idle: Timestamp,
        now: Timestamp,
        rows_max: i64,
    ) -> Result<usize, Error> {
        let slot = from.slot();
        let locked = self.rows(WritersLock { slot, idle: to_pg(idle), rows_max }).await?;
        let ids = locked.into_iter().map(|row| row.id).collect();
        // A statement of its own: its snapshot is from after the locks, so it sees everything that their holders committed.
        self.execute(WritersClose { now: to_pg(now), slot, ids, idle: to_pg(idle) }).await
    }

    /// Deletes writers of the slot that is swept that were closed before `closed`, at most `rows_max`. Returns how many.
    ///
    /// # Errors
    ///
    /// Fails if the database is unavailable.
    pub async fn feed_writers_delete(
        &mut self,
        from: &SweepPosition,
        closed: Timestamp,
        rows_max: i64,
    ) -> Result<usize, Error> {
        self.execute(WritersDelete { slot: from.slot(), closed: to_pg(closed), rows_max }).await
    }
}

/// Why a transaction fails whose writer cannot go on.
pub(super) const CLOSED: &str = "this connection's writer of the feed was closed, or the database lacks its last entry; a new connection has a new one";

statement! {
    /// Locks a writer against being closed, if it can go on: it is open, and its last entry is there.
    WriterLock -> IdRow =
    "SELECT w.id FROM feed_writers AS w WHERE w.slot = "
    [slot: i16 as sql::SmallInt]
    " AND w.id = "
    [id: i64 as sql::BigInt]
    " AND w.last IS NULL AND ("
    [last: i32 as sql::Integer]
    " IN (0, (SELECT r.seq FROM revocations AS r WHERE r.slot = $1 AND r.writer = w.id AND r.writer <> 0
         ORDER BY r.seq DESC LIMIT 1))) FOR SHARE"
}

statement! {
    /// Locks open writers that no transaction uses, and whose newest entry is old.
    WritersLock -> IdRow =
    "SELECT w.id FROM feed_writers AS w WHERE w.slot = "
    [slot: i16 as sql::SmallInt]
    " AND w.last IS NULL AND w.opened_at < "
    [idle: PgTimestamp as sql::Timestamptz]
    " AND NOT coalesce((SELECT r.at FROM revocations AS r WHERE r.slot = $1 AND r.writer = w.id AND r.writer <> 0
         ORDER BY r.seq DESC LIMIT 1) >= $2, false) LIMIT "
    [rows_max: i64 as sql::BigInt]
    " FOR UPDATE OF w SKIP LOCKED"
}

statement! {
    /// Closes those of the locked writers that are still idle.
    WritersClose -> () =
    "UPDATE feed_writers AS w SET closed_at = "
    [now: PgTimestamp as sql::Timestamptz]
    ", last = coalesce((SELECT max(r.seq) FROM revocations AS r WHERE r.slot = $2 AND r.writer = w.id AND r.writer <> 0), 0)
     WHERE w.slot = "
    [slot: i16 as sql::SmallInt]
    " AND w.id = ANY("
    [ids: Vec<i64> as sql::Array<sql::BigInt>]
    ") AND w.last IS NULL AND NOT coalesce((SELECT r.at FROM revocations AS r WHERE r.slot = $2 AND r.writer = w.id AND r.writer <> 0
         ORDER BY r.seq DESC LIMIT 1) >= "
    [idle: PgTimestamp as sql::Timestamptz]
    ", false)"
}

statement! {
    /// Deletes writers that were closed long ago.
    WritersDelete -> () =
    "DELETE FROM feed_writers WHERE slot = "
    [slot: i16 as sql::SmallInt]
    " AND id IN (SELECT id FROM feed_writers WHERE slot = $1 AND closed_at < "
    [closed: PgTimestamp as sql::Timestamptz]
    " LIMIT "
    [rows_max: i64 as sql::BigInt]
    ")"
}

#[derive(QueryableByName)]
struct IdRow {
    #[diesel(sql_type = sql::BigInt)]
    id: i64,
}
