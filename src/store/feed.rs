//! The feed, as the database tells it: what was ended, each once, and how far that goes.
//!
//! Transactions commit out of order, so neither a time nor a sequence tells what is new. A snapshot does: what an earlier
//! one did not show and the present one does. A long transaction elsewhere delays nobody else's news.

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

/// What was ended, as the feed tells of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct News {
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
    xmax: u64,
    /// Those between the two that were under way.
    under_way: Vec<u64>,
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

/// What one look at the feed has shown.
#[derive(Clone, Debug)]
pub struct Reading {
    /// What is new.
    pub news: Vec<News>,
    /// Whose feed it is.
    pub origin: Origin,
    /// How far it goes.
    pub snapshot: Snapshot,
    /// When, by the database's clock.
    pub at: Timestamp,
    /// The last of this replica's own beats that the database showed.
    pub beat: Option<i64>,
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
    /// What.
    pub news: Vec<News>,
    /// Where the next page begins; `None` when this is the last one.
    pub next: Option<PageStart>,
}

/// Who hears of this process's own commits.
#[derive(Clone, Default)]
pub(super) struct Audience {
    /// What they have ended: nobody, or one listener.
    listener: Arc<OnceLock<Listener>>,
    /// That they have queued a delivery.
    pub(super) deliveries: Arc<Notify>,
}

type Listener = Box<dyn Fn(Vec<News>) + Send + Sync>;

impl Audience {
    pub(super) fn tell(&self, news: Vec<News>) {
        if let Some(listener) = self.listener.get()
            && !news.is_empty()
        {
            listener(news);
        }
    }
}

type Columns = ((String, Option<Uuid>, String, PgTimestamp, Option<i64>), NewsColumns);

type NewsColumns = (
    (Option<i64>, Option<Uuid>, Option<String>, Option<String>, Option<PgTimestamp>, Option<i16>),
    (Option<Uuid>, Option<bool>, Option<i64>, Option<Uuid>, Option<i64>),
    (Option<Uuid>, Option<Uuid>, Option<PgTimestamp>),
);

impl Store {
    /// Has someone told of everything that this process ends, after its commit and before its caller is answered. Whoever
    /// comes second is not heard.
    pub fn on_news(&self, listener: impl Fn(Vec<News>) + Send + Sync + 'static) {
        let _ = self.audience.listener.set(Box::new(listener));
    }

    /// Where the database stands, and nothing of what has ended before.
    ///
    /// # Errors
    ///
    /// When the database is away.
    pub async fn feed_position(&self, replica: Uuid) -> Result<Reading, Error> {
        let future = Snapshot { xmin: u64::MAX, xmax: u64::MAX, under_way: vec![] };
        self.feed_next(replica, &future, 1).await
    }

    /// What still matters beyond that moment, because some token may outlive it: a page of it, in the order in which it will
    /// cease to.
    ///
    /// # Errors
    ///
    /// When the database is away.
    pub async fn feed_page(&self, from: PageStart, rows_max: usize) -> Result<Page, Error> {
        let limit = i64::try_from(rows_max).unwrap_or(i64::MAX);
        self.once("feed_page", move |mut tx| async move {
            let statement = FeedPage { after: to_pg(from.access_expires_at), after_id: from.id, rows_max: limit };
            let rows: Result<Vec<NewsColumns>, _> = statement.get_results(tx.pg()).await;
            let rows = rows.map_err(|error| tx.failed(error))?;
            let last = rows.last().filter(|_| rows.len() == rows_max);
            // By the row, not by what was read of it: of an erased user's there may be nothing to tell.
            let next = last.and_then(|((_, id, ..), _, (.., until))| {
                Some(PageStart { access_expires_at: from_pg((*until)?), id: (*id)? })
            });
            let news = rows.into_iter().filter_map(news).collect::<Result<_, _>>()?;
            tx.commit(Page { news, next }).await
        })
        .await
    }

    /// What has come since a reading: each revocation once, as soon as its transaction has committed. At most so many: where
    /// there are as many, there may be more.
    ///
    /// # Errors
    ///
    /// When the database is away.
    pub async fn feed_next(&self, replica: Uuid, before: &Snapshot, rows_max: usize) -> Result<Reading, Error> {
        let number = |xid: u64| i64::try_from(xid).unwrap_or(i64::MAX);
        let (xmax, rows_max) = (number(before.xmax), i64::try_from(rows_max).unwrap_or(i64::MAX));
        let under_way: Vec<i64> = before.under_way.iter().copied().map(number).collect();
        self.once("feed_next", move |mut tx| {
            let statement = FeedNext { replica, xmax, under_way: under_way.clone(), rows_max };
            async move {
                let rows: Result<Vec<Columns>, _> = statement.get_results(tx.pg()).await;
                let rows = rows.map_err(|error| tx.failed(error))?;
                tx.commit(reading(rows)?).await
            }
        })
        .await
    }

    /// Leaves a sign of life, for this replica's own readings to find.
    ///
    /// # Errors
    ///
    /// When the database is away.
    pub async fn feed_beat(&self, replica: Uuid, beat: i64, at: Timestamp) -> Result<(), Error> {
        self.once("feed_beat", move |mut tx| async move {
            let statement = FeedBeat { replica, beat, at: to_pg(at) };
            statement.execute(tx.pg()).await.map_err(|error| tx.failed(error))?;
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
        self.once("feed_beacons_forget", move |mut tx| async move {
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

fn reading(rows: Vec<Columns>) -> Result<Reading, Error> {
    let bad = |column| Error::Inconsistent { table: "feed_histories", column, row: "the feed".to_owned() };
    let Some(((snapshot, history, timeline, at, beat), _)) = rows.as_slice().iter().next() else {
        return Err(bad("id"));
    };
    let origin = Origin {
        history: history.ok_or_else(|| bad("id"))?,
        timeline: u32::from_str_radix(timeline, 16).map_err(|_| bad("timeline"))?,
    };
    let (snapshot, at, beat) = (snapshot.parse().map_err(|()| bad("snapshot"))?, from_pg(*at), *beat);
    let news = rows.into_iter().filter_map(|(_, columns)| news(columns)).collect::<Result<_, _>>()?;
    Ok(Reading { news, origin, snapshot, at, beat })
}

/// Reads a row; `None` for the one that stands for no rows at all.
fn news(columns: NewsColumns) -> Option<Result<News, Error>> {
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
        Ok(News {
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
    }
}
