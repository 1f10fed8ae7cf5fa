//! How far the feed was read, and what a reader may rely on. Pure rules: values in, a decision out.
//!
//! A snapshot says which transactions it shows, by their ids. It does not say which ids are used up: an id that was assigned
//! but had not reached the disk when Postgres crashed is assigned again after the crash, although the earlier snapshot counted
//! it as finished. So an id counts as seen only up to the greatest one that is known to be in the log: that of a row that was
//! read, because a commit is in the log before it becomes visible. Recovery assigns only greater ids.
//!
//! That costs nothing. Between that id and the snapshot's end there was no visible row, so none is read twice.

use crate::store::FeedOrigin;
use crate::store::FeedReading;
use crate::store::Newest;
use crate::store::PgSnapshot;
use crate::store::Unseen;

/// Everything that a reading and the previous ones have shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Position {
    origin: FeedOrigin,
    snapshot: PgSnapshot,
    /// The row with the greatest transaction id; `None` if there was no row.
    newest: Option<Newest>,
}

/// Why a reading does not continue from a position.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Discontinuity {
    /// The database has another history, or another server has taken over.
    AnotherHistory,
    /// The same server no longer has what it has shown: its files were restored to an earlier state, or it had acknowledged
    /// commits that were not on disk.
    WentBack,
}

impl Position {
    /// Begins with a reading. Everything that it shows is, or will be, read completely.
    pub(super) fn new(reading: &FeedReading) -> Self {
        Self { origin: reading.origin, snapshot: reading.snapshot.clone(), newest: reading.newest }
    }

    /// Continues with a reading of what was unseen.
    ///
    /// # Errors
    ///
    /// If the reading does not continue from here.
    pub(super) fn after(&self, reading: &FeedReading) -> Result<Self, Discontinuity> {
        if self.origin != reading.origin {
            return Err(Discontinuity::AnotherHistory);
        }
        // An id that was in the log is not assigned yet; or a row that still matters, and so was not swept, is missing.
        let lacks = |newest: &Newest| reading.lacks_newest && reading.at < newest.access_expires_at;
        if reading.snapshot.xmax <= self.logged() || self.newest.as_ref().is_some_and(lacks) {
            return Err(Discontinuity::WentBack);
        }
        let newest = self.newest.max(reading.newest);
        Ok(Self { origin: self.origin, snapshot: reading.snapshot.clone(), newest })
    }

    /// The greatest transaction id that is known to be in the log.
    fn logged(&self) -> u64 {
        self.newest.map_or(0, |newest| newest.place.xid)
    }

    /// The database and timeline that the ids belong to.
    pub(super) const fn origin(&self) -> FeedOrigin {
        self.origin
    }

    /// The newest row.
    pub(super) const fn newest(&self) -> Option<Newest> {
        self.newest
    }

    /// What the next reading must include.
    pub(super) fn unseen(&self) -> Unseen {
        let logged = self.logged();
        let under_way = self.snapshot.under_way.iter().copied().filter(|xid| *xid <= logged).collect();
        Unseen { from: logged + 1, under_way }
    }

    /// The first id that may still commit a revocation: all before it are finished, and are never assigned again.
    pub(super) fn settled(&self) -> u64 {
        self.snapshot.xmin.min(self.logged() + 1)
    }

    /// Whether a cursor is from a position that this reader has not reached, or that never existed.
    pub(super) const fn is_behind(&self, settled: u64) -> bool {
        self.snapshot.xmax < settled
    }

    /// Whether everything before the beat's transaction was read. It must be finished and on disk, on this server.
    pub(super) fn shows(&self, beat: &Beat) -> bool {
        self.origin == beat.origin && self.snapshot.shows(beat.xid)
    }
}

/// A transaction of our own that wrote to the log and was confirmed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Beat {
    pub(super) origin: FeedOrigin,
    pub(super) xid: u64,
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::collections::BTreeSet;
    use std::time::Duration;

    use uuid::Uuid;

    use super::*;
    use crate::store::Extent;
    use crate::store::FeedPlace;
    use sessiond_core::clock;
    use sessiond_core::clock::Timestamp;

    const ORIGIN: FeedOrigin = FeedOrigin { history: Uuid::from_u128(1), timeline: 1 };

    /// A model of Postgres: ids are assigned, reach the disk at some time, and are committed or rolled back; after a crash, ids
    /// that no record on disk mentions are assigned again.
    #[derive(Default)]
    struct Server {
        next: u64,
        /// Every id below it is on disk, in some record.
        on_disk: u64,
        under_way: BTreeSet<u64>,
        rows: BTreeMap<u64, Uuid>,
    }

    impl Server {
        fn begin(&mut self) -> u64 {
            self.next += 1;
            self.under_way.insert(self.next);
            self.next
        }

        /// Its record is on disk before it becomes visible.
        fn commit(&mut self, xid: u64) {
            assert!(self.under_way.remove(&xid));
            self.rows.insert(xid, clock::new_uuid());
            self.on_disk = self.on_disk.max(xid);
        }

        /// Rolls back; its record need not be on disk.
        fn give_up(&mut self, xid: u64) {
            assert!(self.under_way.remove(&xid));
        }

        fn crash(&mut self) {
            self.under_way.clear();
            self.next = self.on_disk;
        }

        fn snapshot(&self) -> PgSnapshot {
            let xmax = self.next + 1;
            let xmin = self.under_way.first().copied().unwrap_or(xmax);
            PgSnapshot { xmin, xmax, under_way: self.under_way.iter().copied().collect() }
        }

        fn read(&self, unseen: &Unseen) -> (FeedReading, Vec<Uuid>) {
            self.read_some(unseen, usize::MAX)
        }

        /// Reads at most `rows_max` new rows; the last of a full page is left for the next one.
        fn read_some(&self, unseen: &Unseen, rows_max: usize) -> (FeedReading, Vec<Uuid>) {
            let ahead: Vec<u64> = self.rows.range(unseen.from..).map(|(xid, _)| *xid).take(rows_max).collect();
            let end = ahead.last().copied().filter(|_| ahead.len() == rows_max);
            let is_shown = |xid: u64| end.is_none_or(|end| xid < end);
            let rows = self
                .rows
                .iter()
                .filter(|(xid, _)| (**xid >= unseen.from && is_shown(**xid)) || unseen.under_way.contains(xid));
            let rows: Vec<(u64, Uuid)> = rows.map(|(xid, id)| (*xid, *id)).collect();
            let newest = rows.iter().map(|(xid, id)| newest(*xid, *id)).max();
            let snapshot = self.snapshot();
            let snapshot = end.map_or(snapshot.clone(), |end| snapshot.before(end));
            (reading(snapshot, newest), rows.into_iter().map(|(_, id)| id).collect())
        }
    }

    fn newest(xid: u64, id: Uuid) -> Newest {
        Newest { place: FeedPlace { xid, id }, access_expires_at: Timestamp::from_seconds(600) }
    }

    fn reading(snapshot: PgSnapshot, newest: Option<Newest>) -> FeedReading {
        let at = Timestamp::from_seconds(0);
        let extent = Extent::Whole;
        FeedReading {
            revocations: vec![],
            origin: ORIGIN,
            snapshot,
            at,
            newest,
            lacks_newest: false,
            connection: 1,
            extent,
        }
    }

    fn everything() -> Unseen {
        Unseen { from: 0, under_way: vec![] }
    }

    /// Every sequence of a few steps, with crashes at any point: each row is read once, and a cursor from any point leads to
    /// everything that is committed after it.
    #[test]
    fn nothing_is_missed_or_read_twice_when_ids_are_assigned_again() {
        #[derive(Clone, Copy, Debug)]
        enum ModelStep {
            Begin,
            CommitFirst,
            CommitLast,
            GiveUpLast,
            Crash,
            Read,
            /// A page of two rows at most.
            ReadSome,
        }
        use ModelStep::*;
        const STEPS: [ModelStep; 7] = [Begin, CommitFirst, CommitLast, GiveUpLast, Crash, Read, ReadSome];
        const LENGTH: u32 = 6;
        for course in 0..7_usize.pow(LENGTH) {
            let steps = (0..LENGTH).map(|at| STEPS[course / 7_usize.pow(at) % 7]);
            let mut server = Server::default();
            let xid = server.begin();
            server.commit(xid);
            let (first, mut seen) = server.read(&everything());
            let mut position = Position::new(&first);
            let mut cursors = vec![(position.settled(), seen.len())];
            for step in steps.clone().chain([Begin, CommitLast, Read]) {
                match step {
                    Begin => drop(server.begin()),
                    CommitFirst => drop(server.under_way.first().copied().map(|xid| server.commit(xid))),
                    CommitLast => drop(server.under_way.last().copied().map(|xid| server.commit(xid))),
                    GiveUpLast => drop(server.under_way.last().copied().map(|xid| server.give_up(xid))),
                    Crash => server.crash(),
                    Read | ReadSome => {
                        let rows_max = if matches!(step, Read) { usize::MAX } else { 2 };
                        let (reading, rows) = server.read_some(&position.unseen(), rows_max);
                        position = position.after(&reading).unwrap_or_else(|_| panic!("a break in {course}"));
                        seen.extend(rows);
                        cursors.push((position.settled(), seen.len()));
                    }
                }
            }
            let unique: BTreeSet<Uuid> = seen.iter().copied().collect();
            let all: BTreeSet<Uuid> = server.rows.values().copied().collect();
            let course = || steps.clone().collect::<Vec<_>>();
            assert_eq!(unique.len(), seen.len(), "read twice: {:?}", course());
            assert_eq!(unique, all, "missed: {:?}", course());
            for (settled, known) in cursors {
                let known: BTreeSet<Uuid> = seen[..known].iter().copied().collect();
                let sent: BTreeSet<Uuid> = server.rows.range(settled..).map(|(_, id)| *id).collect();
                assert!(all.difference(&known).all(|id| sent.contains(id)), "lost by a cursor: {:?}", course());
            }
        }
    }

    #[test]
    fn a_database_that_went_back_does_not_continue() {
        let mut server = Server::default();
        for _ in 0..9 {
            let xid = server.begin();
            server.commit(xid);
        }
        let (all, _) = server.read(&everything());
        let position = Position::new(&all);
        assert_eq!((position.settled(), position.unseen()), (10, Unseen { from: 10, under_way: vec![] }));
        let at = |xmax| reading(PgSnapshot { xmin: xmax, xmax, under_way: vec![] }, None);
        assert_eq!(position.after(&at(9)), Err(Discontinuity::WentBack), "its last id is not assigned yet");
        assert!(position.after(&at(10)).is_ok());
        // The ids have come as far again, but the row is missing.
        let lacking = FeedReading { lacks_newest: true, ..at(20) };
        assert_eq!(position.after(&lacking), Err(Discontinuity::WentBack));
        // It may have been swept once it no longer matters.
        let late = FeedReading { at: Timestamp::from_seconds(0) + Duration::from_secs(600), ..lacking };
        assert!(position.after(&late).is_ok());
        let elsewhere = FeedReading { origin: FeedOrigin { timeline: 2, ..ORIGIN }, ..at(20) };
        assert_eq!(position.after(&elsewhere), Err(Discontinuity::AnotherHistory));
        assert!(!position.is_behind(10) && position.is_behind(11), "a cursor from the future");
    }

    #[test]
    fn a_beat_is_shown_by_a_later_snapshot_of_the_same_server() {
        let position = |text: &str| Position::new(&reading(text.parse().expect("a snapshot"), None));
        let beat = Beat { origin: ORIGIN, xid: 7 };
        assert!(position("8:8:").shows(&beat) && position("3:9:3,8").shows(&beat));
        assert!(!position("7:8:7").shows(&beat) && !position("7:7:").shows(&beat));
        let elsewhere = FeedOrigin { timeline: 2, ..ORIGIN };
        assert!(!position("8:8:").shows(&Beat { origin: elsewhere, xid: 7 }));
    }
}
