//! How far the feed was read, and what a reader may rely on. Pure rules: values in, a decision out. `explorer` searches every
//! interleaving of a small model for one in which they lose a revocation.
//!
//! A position is the last number read of each writer (`store::writers`). What a reader sees of a writer is always its first
//! numbers, and no number is used twice, in whatever history: so what was read is never skipped or replaced by something else,
//! and an entry behind the position is new. This needs no order across writers, and holds on any number of nodes.
//!
//! Two things are about one server only:
//! - The [`FeedOrigin`]: a failover or a restore may lose entries that were read. Nothing is missed by that; but a reader must
//!   forget the entries that the database no longer has, so it starts again.
//! - The [`Beat`]: a transaction of our own shows by its id that the server which is read still takes our commits. A divided
//!   database has one of each slot, from the node that has it.

use std::collections::BTreeMap;

use crate::store::Extent;
use crate::store::FeedOrigin;
use crate::store::FeedPresent;
use crate::store::FeedReading;
use crate::store::FeedWriters;
#[cfg(test)]
use crate::store::PgSnapshot;
use crate::store::SlotBeat;
use crate::store::SlotSnapshot;
use crate::store::WriterId;
use sessiond_core::clock::Timestamp;

/// Everything that a reading and the previous ones have shown.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Position {
    origin: FeedOrigin,
    /// What the last reading showed; `None` if there was more than it returned.
    shown: Option<Vec<SlotSnapshot>>,
    writers: BTreeMap<WriterId, Newest>,
    /// A reading left out entries that must have been there.
    is_torn: bool,
}

/// The last entry that was read of a writer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Newest {
    seq: u32,
    access_expires_at: Timestamp,
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
    /// Begins with the present writers, before the backlog is read: what they write meanwhile is read again by the next reading.
    pub(super) fn new(found: &FeedWriters) -> Self {
        let read = found.newest.iter().filter(|entry| entry.seq > 0);
        let newest = read
            .map(|entry| (entry.writer, Newest { seq: entry.seq, access_expires_at: entry.access_expires_at }))
            .collect();
        Self { origin: found.present.origin, shown: None, writers: newest, is_torn: false }
    }

    /// Continues with a reading of what is behind this position.
    ///
    /// # Errors
    ///
    /// If the reading does not continue from here. [`Position::check`] then fails too.
    pub(super) fn advance(&mut self, reading: &FeedReading) -> Result<(), Discontinuity> {
        self.check_origin(&reading.present)?;
        for entry in &reading.entries {
            let newest = Newest { seq: entry.seq, access_expires_at: entry.access_expires_at };
            let before = self.writers.insert(entry.writer, newest);
            // Of a writer of which nothing was read, the first entries may have been swept.
            if before.is_some_and(|before| before.seq + 1 != entry.seq) {
                self.is_torn = true;
                return Err(Discontinuity::WentBack);
            }
        }
        self.shown = match reading.extent {
            Extent::Whole => Some(reading.present.snapshots.clone()),
            Extent::Part => None,
        };
        Ok(())
    }

    /// Checks that the database still has the newest entry of each writer, and so everything before it. An entry that no longer
    /// matters may have been swept, and its writer as well.
    ///
    /// # Errors
    ///
    /// If it lacks one.
    pub(super) fn check(&self, found: &FeedWriters) -> Result<(), Discontinuity> {
        self.check_origin(&found.present)?;
        let present: BTreeMap<WriterId, u32> = found.newest.iter().map(|entry| (entry.writer, entry.seq)).collect();
        let lacks = |(writer, newest): (&WriterId, &Newest)| {
            let has = present.get(writer).is_some_and(|seq| newest.seq <= *seq);
            !has && found.present.at < newest.access_expires_at
        };
        if self.is_torn || self.writers.iter().any(lacks) { Err(Discontinuity::WentBack) } else { Ok(()) }
    }

    /// Forgets the writers that were swept. Their entries no longer matter, and there will be no more; see [`Position::check`].
    pub(super) fn forget_swept(&mut self, found: &FeedWriters) {
        let present: BTreeMap<WriterId, u32> = found.newest.iter().map(|entry| (entry.writer, entry.seq)).collect();
        self.writers.retain(|writer, _| present.contains_key(writer));
    }

    fn check_origin(&self, present: &FeedPresent) -> Result<(), Discontinuity> {
        if self.origin == present.origin { Ok(()) } else { Err(Discontinuity::AnotherHistory) }
    }

    /// The database and timeline that were read.
    pub(super) const fn origin(&self) -> FeedOrigin {
        self.origin
    }

    /// The last number that was read of each writer: the next reading begins behind it.
    pub(super) fn numbers(&self) -> BTreeMap<WriterId, u32> {
        self.writers.iter().map(|(writer, newest)| (*writer, newest.seq)).collect()
    }

    /// The last number that was read of a writer; `None` before the first.
    pub(super) fn number(&self, writer: WriterId) -> Option<u32> {
        self.writers.get(&writer).map(|newest| newest.seq)
    }

    /// Whether a cursor with these numbers is from a position that this reader has not reached, or that never existed.
    pub(super) fn is_behind(&self, numbers: &BTreeMap<WriterId, u32>) -> bool {
        numbers.iter().any(|(writer, seq)| self.number(*writer).unwrap_or(0) < *seq)
    }

    /// Whether everything before the beat's transactions was read. They must be finished and on disk, on the servers that were
    /// read: if the two went to different nodes, because a slot has moved, the reading may be the older one.
    pub(super) fn shows(&self, beat: &Beat) -> bool {
        let Some(shown) = &self.shown else { return false };
        let is_shown = |beat: &SlotBeat| {
            shown.iter().any(|of| of.slot == beat.slot && of.node == beat.node && of.snapshot.shows(beat.xid))
        };
        self.origin == beat.origin && shown.len() == beat.slots.len() && beat.slots.iter().all(is_shown)
    }
}

/// Transactions of our own that wrote to the logs and were confirmed, one for each slot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Beat {
    pub(super) origin: FeedOrigin,
    pub(super) slots: Vec<SlotBeat>,
}

#[cfg(test)]
impl Beat {
    /// The beat of a database with one slot.
    pub(super) fn of_one(origin: FeedOrigin, xid: u64) -> Self {
        Self { origin, slots: vec![SlotBeat { slot: 0, node: 0, xid }] }
    }
}

#[cfg(test)]
impl FeedPresent {
    /// The reading of a database with one slot.
    pub(super) fn of_one(origin: FeedOrigin, snapshot: PgSnapshot, at: Timestamp) -> Self {
        Self { origin, snapshots: vec![SlotSnapshot { slot: 0, node: 0, snapshot }], at, connection: 1 }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use uuid::Uuid;

    use super::*;
    use crate::store::WriterEntry;

    const ORIGIN: FeedOrigin = FeedOrigin { history: Uuid::from_u128(1), timeline: 1 };
    const ELSEWHERE: FeedOrigin = FeedOrigin { timeline: 2, ..ORIGIN };

    fn present(origin: FeedOrigin, snapshot: &str) -> FeedPresent {
        FeedPresent::of_one(origin, snapshot.parse().expect("a snapshot"), Timestamp::from_seconds(0))
    }

    fn entries(of: &[(u64, u32)]) -> Vec<WriterEntry> {
        let entry = |(writer, seq): &(u64, u32)| WriterEntry {
            writer: WriterId::from_number(*writer),
            seq: *seq,
            access_expires_at: Timestamp::from_seconds(600),
        };
        of.iter().map(entry).collect()
    }

    fn found(newest: &[(u64, u32)]) -> FeedWriters {
        FeedWriters { present: present(ORIGIN, "1:1:"), newest: entries(newest) }
    }

    fn reading(new: &[(u64, u32)]) -> FeedReading {
        let (present, entries) = (present(ORIGIN, "8:8:"), entries(new));
        FeedReading { present, revocations: vec![], entries, extent: Extent::Whole }
    }

    #[test]
    fn a_reading_continues_each_writer_without_a_gap() {
        let start = Position::new(&found(&[(1, 3), (2, 7), (3, 0)]));
        let numbers = |position: &Position| -> Vec<_> {
            position.numbers().into_iter().map(|(writer, seq)| (writer.number(), seq)).collect()
        };
        assert_eq!(numbers(&start), [(1, 3), (2, 7)], "of the third there is nothing yet");
        let mut position = start.clone();
        assert_eq!(position.advance(&reading(&[(1, 4), (1, 5), (3, 9), (3, 10)])), Ok(()), "its first ones were swept");
        assert_eq!(numbers(&position), [(1, 5), (2, 7), (3, 10)]);
        for torn in [&[(1, 5)][..], &[(1, 4), (1, 6)], &[(1, 3)], &[(2, 7)], &[(3, 1), (3, 3)]] {
            let mut position = start.clone();
            assert_eq!(position.advance(&reading(torn)), Err(Discontinuity::WentBack), "{torn:?}");
            assert_eq!(position.check(&found(&[(1, 9), (2, 9), (3, 9)])), Err(Discontinuity::WentBack), "{torn:?}");
        }
        let elsewhere = FeedReading { present: present(ELSEWHERE, "8:8:"), ..reading(&[(1, 4)]) };
        assert_eq!(start.clone().advance(&elsewhere), Err(Discontinuity::AnotherHistory));
    }

    #[test]
    fn a_database_that_lacks_what_it_has_shown_does_not_continue() {
        let mut position = Position::new(&found(&[(1, 3), (2, 7)]));
        for has in [&[(1, 3), (2, 7)][..], &[(1, 4), (2, 7), (3, 1)]] {
            assert_eq!(position.check(&found(has)), Ok(()), "{has:?}");
        }
        for lacks in [&[(1, 2), (2, 7)][..], &[(2, 7)], &[(1, 3), (2, 0)], &[]] {
            assert_eq!(position.check(&found(lacks)), Err(Discontinuity::WentBack), "{lacks:?}");
            // It may have been swept once it no longer matters.
            let mut late = found(lacks);
            late.present.at = Timestamp::from_seconds(599);
            assert_eq!(position.check(&late), Err(Discontinuity::WentBack), "{lacks:?}");
            late.present.at = late.present.at + Duration::from_secs(1);
            assert_eq!(position.check(&late), Ok(()), "{lacks:?}");
        }
        position.forget_swept(&found(&[(2, 0), (3, 1)]));
        assert_eq!(position.numbers().into_iter().collect::<Vec<_>>(), [(WriterId::from_number(2), 7)]);
        let elsewhere = FeedWriters { present: present(ELSEWHERE, "8:8:"), newest: vec![] };
        assert_eq!(position.check(&elsewhere), Err(Discontinuity::AnotherHistory));
    }

    #[test]
    fn a_cursor_from_the_future_is_recognised() {
        let position = Position::new(&found(&[(1, 3), (2, 7)]));
        let is_behind = |numbers: &[(u64, u32)]| {
            position.is_behind(&numbers.iter().map(|(writer, seq)| (WriterId::from_number(*writer), *seq)).collect())
        };
        assert!(!is_behind(&[]) && !is_behind(&[(1, 3)]) && !is_behind(&[(1, 1), (2, 7)]));
        assert!(is_behind(&[(1, 4)]) && is_behind(&[(1, 3), (2, 8)]) && is_behind(&[(3, 1)]));
    }

    #[test]
    fn a_beat_is_shown_by_a_later_whole_reading_of_the_same_server() {
        let position = |snapshot: &str, extent| {
            let mut position = Position::new(&found(&[]));
            let reading = FeedReading { present: present(ORIGIN, snapshot), extent, ..reading(&[]) };
            position.advance(&reading).expect("continues");
            position
        };
        let (whole, beat) = (|snapshot| position(snapshot, Extent::Whole), Beat::of_one(ORIGIN, 7));
        assert!(!Position::new(&found(&[])).shows(&beat), "nothing was read yet");
        assert!(whole("8:8:").shows(&beat) && whole("3:9:3,8").shows(&beat));
        assert!(!whole("7:8:7").shows(&beat) && !whole("7:7:").shows(&beat));
        assert!(!position("8:8:", Extent::Part).shows(&beat), "there may be more from before the beat");
        assert!(!whole("8:8:").shows(&Beat::of_one(ELSEWHERE, 7)));
    }

    #[test]
    fn a_beat_of_several_nodes_is_shown_by_each() {
        let at = |slot, node, snapshot: &str| SlotSnapshot { slot, node, snapshot: snapshot.parse().expect("one") };
        let position = |snapshots: Vec<SlotSnapshot>| {
            let mut position = Position::new(&found(&[]));
            let present = FeedPresent { snapshots, ..present(ORIGIN, "1:1:") };
            position.advance(&FeedReading { present, ..reading(&[]) }).expect("continues");
            position
        };
        let slots = [(1, 70, 7), (2, 80, 900)].map(|(slot, node, xid)| SlotBeat { slot, node, xid }).to_vec();
        let beat = Beat { origin: ORIGIN, slots };
        assert!(position(vec![at(1, 70, "8:8:"), at(2, 80, "901:901:")]).shows(&beat));
        for late in [
            vec![at(1, 70, "8:8:"), at(2, 80, "900:900:")],
            vec![at(1, 70, "7:7:"), at(2, 80, "901:901:")],
            // It has moved between the two.
            vec![at(1, 70, "8:8:"), at(2, 70, "901:901:")],
            vec![at(1, 80, "901:901:"), at(2, 80, "901:901:")],
            // It was not read, or the beat did not reach it.
            vec![at(1, 70, "8:8:")],
            vec![at(1, 70, "8:8:"), at(2, 80, "901:901:"), at(3, 80, "901:901:")],
        ] {
            assert!(!position(late.clone()).shows(&beat), "{late:?}");
        }
    }
}
