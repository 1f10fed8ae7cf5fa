//! The feed, as the database tells it: what was ended, each once, and how far that goes.
//!
//! Transactions commit out of order, so neither a time nor a sequence tells what is new. A snapshot does: what an earlier
//! one did not show and the present one does. A long transaction elsewhere delays no other revocation.

use std::str::FromStr;
use std::sync::Arc;
use std::sync::OnceLock;

use diesel::ExpressionMethods as _;
use diesel::pg::data_types::PgTimestamp;
use diesel_async::RunQueryDsl as _;
use tokio::sync::Notify;
use uuid::Uuid;

use super::Store;
use super::Tx;
use super::error::Error;
use super::rows::from_pg;
use super::rows::reason_of;
use super::rows::to_pg;
use super::schema::feed_beacons;
use super::schema::feed_histories;
use super::statements::FeedBeat;
use super::statements::FeedNext;
use super::statements::FeedPage;
use super::statements::FeedPosition;
use crate::clock;
use crate::clock::Timestamp;
use crate::id::KeyId;
use crate::id::ProjectId;
use crate::id::SessionId;
use crate::id::UserId;
use crate::session::RevokeReason;
use crate::session::revoked::Ended;

/// Where in the feed something stands: the transaction that wrote it, and its own id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Place {
    /// The number of the transaction.
    pub xid: u64,
    /// The line of the audit.
    pub id: Uuid,
}

/// A revocation, as the feed publishes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PublishedRevocation {
    /// Where it stands.
    pub place: Place,
    /// The project.
    pub project: ProjectId,
    /// What.
    pub ended: Ended,
    /// Whose session it was; none for what concerns no one user, and once the user was erased.
    pub user: Option<UserId>,
    /// When.
    pub at: Timestamp,
    /// Why.
    pub reason: RevokeReason,
    /// Until then some verifier may hold a token that this ends.
    pub access_expires_at: Timestamp,
}

/// A snapshot of the database: which transactions it shows (`pg_snapshot`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// Every transaction before this one was over.
    pub xmin: u64,
    /// This one and all after it had yet to begin.
    pub xmax: u64,
    /// Those between the two that were under way.
    pub under_way: Vec<u64>,
}

impl Snapshot {
    /// Whether the transaction was over.
    pub fn shows(&self, xid: u64) -> bool {
        xid < self.xmax && !self.under_way.contains(&xid)
    }

    /// As much of it as concerns the transactions before this one: of all others, it says that they had yet to begin.
    #[must_use]
    pub fn before(self, xid: u64) -> Self {
        let Self { xmin, xmax, mut under_way } = self;
        under_way.retain(|other| *other < xid);
        Self { xmin: xmin.min(xid), xmax: xmax.min(xid), under_way }
    }
}

impl FromStr for Snapshot {
    type Err = ();

    /// Reads Postgres's own form, `xmin:xmax:xid,xid`.
    fn from_str(text: &str) -> Result<Self, ()> {
        let mut parts = text.split(':');
        let mut next = || parts.next().ok_or(());
        let number = |text: &str| text.parse().map_err(|_| ());
        let (xmin, xmax) = (number(next()?)?, number(next()?)?);
        let under_way = next()?.split(',').filter(|xid| !xid.is_empty()).map(number).collect::<Result<_, _>>()?;
        Ok(Self { xmin, xmax, under_way })
    }
}

/// What a database tells, and up to which fork: positions in it mean nothing in any other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Origin {
    /// The history; a restore from backup begins a new one.
    pub history: Uuid,
    /// The timeline of its write-ahead log; whichever server takes over begins a new one.
    pub timeline: u32,
}

/// The row of the feed with the greatest number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Newest {
    /// Where it stands.
    pub place: Place,
    /// Until then some verifier may hold a token that it ends: so long it is not swept.
    pub access_expires_at: Timestamp,
}

/// Which transactions a reading looks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unseen {
    /// This one and all after it.
    pub from: u64,
    /// Earlier ones.
    pub under_way: Vec<u64>,
}

/// What one look at the feed has shown.
#[derive(Clone, Debug)]
pub struct Reading {
    /// The revocations that are new.
    pub revocations: Vec<PublishedRevocation>,
    /// Whose feed it is.
    pub origin: Origin,
    /// How far it goes.
    pub snapshot: Snapshot,
    /// When, by the database's clock.
    pub at: Timestamp,
    /// Of what was looked at, the row with the greatest number.
    pub newest: Option<Newest>,
    /// The row that was asked about is gone; never so where none was.
    pub lacks_newest: bool,
    /// Tells one connection from the next: they are numbered within the process.
    pub connection: u64,
    /// How much of what was unseen it shows.
    pub extent: Extent,
}

/// How much of what was unseen a reading shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extent {
    /// All of it.
    Whole,
    /// The beginning, and its snapshot goes no further: there is more to be read at once.
    Part,
    /// One transaction has written more than fits into a reading, so that this one cannot be gone on from.
    TooMuch,
}

/// Where a page of the past begins: behind this.
#[derive(Clone, Copy, Debug)]
pub struct PageStart {
    access_expires_at: Timestamp,
    id: Uuid,
}

impl PageStart {
    /// The first page of what matters beyond that moment.
    pub const fn at(from: Timestamp) -> Self {
        Self { access_expires_at: from, id: Uuid::nil() }
    }
}

/// Some of what still matters.
#[derive(Clone, Debug)]
pub struct Page {
    /// The revocations.
    pub revocations: Vec<PublishedRevocation>,
    /// Where the next page begins; `None` when this is the last one.
    pub next: Option<PageStart>,
}

/// Publishes what this process has committed.
#[derive(Clone, Default)]
pub(super) struct Publisher {
    /// Receives the revocations: at most one listener.
    listener: Arc<OnceLock<Listener>>,
    /// Notified when a delivery is queued.
    pub(super) deliveries: Arc<Notify>,
}

type Listener = Box<dyn Fn(Vec<PublishedRevocation>) + Send + Sync>;

impl Publisher {
    pub(super) fn publish(&self, revocations: Vec<PublishedRevocation>) {
        if let Some(listener) = self.listener.get()
            && !revocations.is_empty()
        {
            listener(revocations);
        }
    }
}

type Columns = (PresentColumns, RevocationColumns);

type PresentColumns = (String, Option<Uuid>, String, PgTimestamp);

type PositionColumns = (PresentColumns, (Option<i64>, Option<Uuid>, Option<PgTimestamp>), bool);

type RevocationColumns = (
    (Option<i64>, Option<Uuid>, Option<String>, Option<String>, Option<PgTimestamp>, Option<i16>),
    (Option<Uuid>, Option<bool>, Option<i64>, Option<Uuid>, Option<i64>),
    (Option<Uuid>, Option<Uuid>, Option<PgTimestamp>),
);

impl Store {
    /// Registers the listener for the revocations of this process. It is called after each commit, before the caller is
    /// answered. Only the first one registered is called.
    pub fn on_revocations(&self, listener: impl Fn(Vec<PublishedRevocation>) + Send + Sync + 'static) {
        let _ = self.publisher.listener.set(Box::new(listener));
    }

    /// Where the database stands, what its newest row is, and whether it still has the one that was the newest.
    ///
    /// # Errors
    ///
    /// When the database is away.
    pub async fn feed_position(&self, known: Option<Newest>) -> Result<Reading, Error> {
        let known = known.map(|newest| newest.place);
        let (xid, id) = (known.and_then(|place| i64::try_from(place.xid).ok()), known.map(|place| place.id));
        self.idempotent("feed_position", move |mut tx| async move {
            let statement = FeedPosition { xid, id };
            let rows: Result<Vec<PositionColumns>, _> = statement.get_results(tx.pg()).await;
            let rows = rows.map_err(|error| tx.failed(error))?;
            let Some((present, (xid, id, until), has_known)) = rows.into_iter().next() else { return Err(bad("id")) };
            let newest = newest(xid, id, until);
            let reading = reading(&present, vec![], newest, tx.connection())?;
            tx.commit(Reading { lacks_newest: known.is_some() && !has_known, ..reading }).await
        })
        .await
    }

    /// What still matters beyond that moment, because some token may outlive it: a page of it, in the order in which it will
    /// cease to.
    ///
    /// # Errors
    ///
    /// When the database is away.
    pub async fn feed_page(&self, from: PageStart, rows_max: usize) -> Result<Page, Error> {
        let limit = i64::try_from(rows_max).unwrap_or(i64::MAX);
        self.idempotent("feed_page", move |mut tx| async move {
            let statement = FeedPage { after: to_pg(from.access_expires_at), after_id: from.id, rows_max: limit };
            let rows: Result<Vec<RevocationColumns>, _> = statement.get_results(tx.pg()).await;
            let rows = rows.map_err(|error| tx.failed(error))?;
            let last = rows.last().filter(|_| rows.len() == rows_max);
            // By the row, not by what was read of it: of an erased user's there may be nothing to tell.
            let next = last.and_then(|((_, id, ..), _, (.., until))| {
                Some(PageStart { access_expires_at: from_pg((*until)?), id: (*id)? })
            });
            let revocations = rows.into_iter().filter_map(published).collect::<Result<_, _>>()?;
            tx.commit(Page { revocations, next }).await
        })
        .await
    }

    /// What was committed by transactions that are unseen: each revocation as soon as its transaction has committed. Where that
    /// is more than so many, the reading is of the first of them; see [`Extent`].
    ///
    /// # Errors
    ///
    /// When the database is away.
    pub async fn feed_next(&self, unseen: &Unseen, rows_max: usize) -> Result<Reading, Error> {
        let number = |xid: u64| i64::try_from(xid).unwrap_or(i64::MAX);
        let (from, limit) = (number(unseen.from), i64::try_from(rows_max).unwrap_or(i64::MAX));
        let under_way: Vec<i64> = unseen.under_way.iter().copied().map(number).collect();
        self.idempotent("feed_next", move |mut tx| {
            let under_way = under_way.clone();
            let statement = FeedNext { from, rows_max: limit, under_way, under_way_rows_max: limit };
            async move {
                let rows: Result<Vec<Columns>, _> = statement.get_results(tx.pg()).await;
                let mut rows = rows.map_err(|error| tx.failed(error))?;
                let Some((present, _)) = rows.as_slice().iter().next().cloned() else { return Err(bad("id")) };
                // By the rows, not by what was read of them: of an erased user's there may be nothing to tell.
                let xid_of = |(_, ((xid, ..), ..)): &Columns| *xid;
                let (extent, end) = extent(rows.iter().filter_map(xid_of), from, rows_max);
                if let Some(end) = end {
                    rows.retain(|row| xid_of(row).is_some_and(|xid| xid < end));
                }
                let placed = |(_, ((xid, id, ..), _, (.., until))): &Columns| newest(*xid, *id, *until);
                let newest = rows.iter().filter_map(placed).max();
                let revocations =
                    rows.into_iter().filter_map(|(_, columns)| published(columns)).collect::<Result<_, _>>()?;
                let reading = reading(&present, revocations, newest, tx.connection())?;
                let snapshot = match end {
                    Some(end) => reading.snapshot.before(end.try_into().map_err(|_| bad("xid"))?),
                    None => reading.snapshot,
                };
                tx.commit(Reading { snapshot, extent, ..reading }).await
            }
        })
        .await
    }

    /// Writes to the log, and to no table: proof that the server takes writes. Returns the number of the transaction, which
    /// any later snapshot of the same server shows.
    ///
    /// # Errors
    ///
    /// When the database is away, or commits are not confirmed.
    pub async fn feed_beat(&self) -> Result<(Origin, u64), Error> {
        self.idempotent("feed_beat", move |mut tx| async move {
            let rows: Result<Vec<(i64, Option<Uuid>, String)>, _> = FeedBeat {}.get_results(tx.pg()).await;
            let rows = rows.map_err(|error| tx.failed(error))?;
            let Some((xid, history, timeline)) = rows.into_iter().next() else { return Err(bad("id")) };
            let xid = xid.try_into().map_err(|_| bad("xid"))?;
            tx.commit((origin(history, &timeline)?, xid)).await
        })
        .await
    }

    /// Begins a new history, unless that was done since this one was read.
    ///
    /// # Errors
    ///
    /// When the database is away.
    pub async fn feed_history_begin(&self, last: Origin, now: Timestamp) -> Result<(), Error> {
        if self.feed_position(None).await?.origin != last {
            return Ok(());
        }
        self.transact("feed_history_begin", move |mut tx| async move {
            tx.feed_history_insert(now).await?;
            tx.commit(()).await
        })
        .await
    }

    /// Forgets the replicas that have given no sign of life since then.
    ///
    /// # Errors
    ///
    /// When the database is away.
    pub async fn feed_beacons_forget(&self, before: Timestamp) -> Result<(), Error> {
        self.idempotent("feed_beacons_forget", move |mut tx| async move {
            let delete = diesel::delete(feed_beacons::table).filter(feed_beacons::at.lt(to_pg(before)));
            delete.execute(tx.pg()).await.map_err(|error| tx.failed(error))?;
            tx.commit(()).await
        })
        .await
    }
}

impl Tx {
    /// Begins a new history: cursors of the one before lead nowhere.
    ///
    /// # Errors
    ///
    /// When the database is away.
    pub async fn feed_history_insert(&mut self, now: Timestamp) -> Result<(), Error> {
        let (id, began_at) = (feed_histories::id.eq(clock::new_uuid()), feed_histories::began_at.eq(to_pg(now)));
        // The one from before was written by the database's own clock, which may be ahead.
        diesel::delete(feed_histories::table).execute(self.pg()).await.map_err(|error| self.failed(error))?;
        let insert = diesel::insert_into(feed_histories::table).values((id, began_at));
        insert.execute(self.pg()).await.map(drop).map_err(|error| self.failed(error))
    }
}

fn bad(column: &'static str) -> Error {
    Error::Inconsistent { table: "feed_histories", column, row: "the feed".to_owned() }
}

fn origin(history: Option<Uuid>, timeline: &str) -> Result<Origin, Error> {
    let timeline = u32::from_str_radix(timeline, 16).map_err(|_| bad("timeline"))?;
    Ok(Origin { history: history.ok_or_else(|| bad("id"))?, timeline })
}

fn reading(
    (snapshot, history, timeline, at): &PresentColumns,
    revocations: Vec<PublishedRevocation>,
    newest: Option<Newest>,
    connection: u64,
) -> Result<Reading, Error> {
    let (origin, snapshot) = (origin(*history, timeline)?, snapshot.parse().map_err(|()| bad("snapshot"))?);
    let (at, extent) = (from_pg(*at), Extent::Whole);
    Ok(Reading { revocations, origin, snapshot, at, newest, lacks_newest: false, connection, extent })
}

/// How much of what was unseen these rows are, told by the numbers of their transactions; and the one that they go up to,
/// where they are not all: of that one, there may be more.
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

/// Where a row stands; `None` for the one that stands for no rows at all, and for those that are older than the numbers.
fn newest(xid: Option<i64>, id: Option<Uuid>, until: Option<PgTimestamp>) -> Option<Newest> {
    let place = Place { xid: xid?.try_into().ok()?, id: id? };
    Some(Newest { place, access_expires_at: from_pg(until?) })
}

/// Reads a row; `None` for the one that stands for no rows at all.
fn published(columns: RevocationColumns) -> Option<Result<PublishedRevocation, Error>> {
    let ((xid, id, project, user, at, reason), ended, (signing_key, server_key, access_expires_at)) = columns;
    let (session, is_impersonation, user_epoch, spared, project_epoch) = ended;
    let (id, project, at, reason, access_expires_at) = (id?, project?, at?, reason?, access_expires_at?);
    let user = user.as_deref().and_then(UserId::parse);
    let ended = match (session, user_epoch, project_epoch, signing_key, server_key) {
        (Some(session), ..) => {
            Ended::Session { id: SessionId::from_uuid(session), is_impersonation: is_impersonation.unwrap_or_default() }
        }
        // An erased user's sessions were ended one by one.
        (_, Some(epoch), ..) => Ended::User { user: user.clone()?, epoch, spared: spared.map(SessionId::from_uuid) },
        (_, _, Some(epoch), ..) => Ended::Project { epoch },
        (_, _, _, Some(key), _) => Ended::SigningKey(KeyId::from_uuid(key)),
        (_, _, _, _, Some(key)) => Ended::ServerKey(KeyId::from_uuid(key)),
        (None, None, None, None, None) => return None,
    };
    let bad = |column| Error::Inconsistent { table: "revocations", column, row: id.to_string() };
    let read = || {
        Ok(PublishedRevocation {
            // Without a number it is older than the numbers.
            place: Place { xid: xid.unwrap_or(0).try_into().map_err(|_| bad("xid"))?, id },
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_snapshot_says_what_it_does_not_show() {
        let read = |text: &str| text.parse::<Snapshot>();
        assert_eq!(read("740:745:741,743"), Ok(Snapshot { xmin: 740, xmax: 745, under_way: vec![741, 743] }));
        assert_eq!(read("740:740:"), Ok(Snapshot { xmin: 740, xmax: 740, under_way: vec![] }));
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
