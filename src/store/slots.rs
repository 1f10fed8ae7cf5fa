//! Slots: the parts into which a database is divided. Everything about a user is in one slot, and every statement about users
//! names the slot, so that a divided database sends it to one node. One Postgres has one slot.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::AtomicU16;
use std::sync::atomic::Ordering;

use super::Store;
use super::Tx;
use sessiond_core::id::Bucket;

/// Where a user's rows are: the value of the column `slot`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Slot(i16);

impl Slot {
    /// The slot of a bucket, if there are `slots`. In a divided database they count from 1, so that it can refuse rows of a server
    /// that knows one slot only.
    fn of(bucket: Bucket, slots: u16) -> Self {
        let index = u32::from(bucket.number()) * u32::from(slots) / u32::from(Bucket::COUNT);
        Self(i16::try_from(index + u32::from(slots > 1)).expect("there are at most 4,096 slots"))
    }

    /// Its column.
    pub(super) const fn to_column(self) -> i16 {
        self.0
    }
}

/// How many slots the database has, as found by the connections. They must agree.
#[derive(Default)]
pub(super) struct SlotCount {
    count: AtomicU16,
    is_divided: AtomicBool,
    waits_for_no_standby: AtomicBool,
}

/// The database has another number of slots than before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the database has {found} slots, and had {known} when this server started: restart it")]
pub(super) struct SlotsChanged {
    known: u16,
    found: u16,
}

impl SlotCount {
    /// Notes the number that a new connection has found.
    ///
    /// # Errors
    ///
    /// Fails if an earlier connection has found another one: rows would be looked for in the wrong slot.
    pub(super) fn note(&self, found: u16) -> Result<(), SlotsChanged> {
        match self.count.compare_exchange(0, found, Ordering::Relaxed, Ordering::Relaxed) {
            Err(known) if known != found => Err(SlotsChanged { known, found }),
            Ok(_) | Err(_) => Ok(()),
        }
    }

    /// How many there are.
    pub(super) fn count(&self) -> u16 {
        // Before the first connection nothing is asked.
        self.count.load(Ordering::Relaxed).max(1)
    }

    /// Notes that the slots are on several nodes.
    pub(super) fn note_divided(&self) {
        self.is_divided.store(true, Ordering::Relaxed);
    }

    /// How many slots a divided database has; `None` before the first connection to one.
    pub(super) fn of_divided(&self) -> Option<u16> {
        self.is_divided().then(|| self.count())
    }

    /// Whether the slots are on several nodes.
    pub(super) fn is_divided(&self) -> bool {
        self.is_divided.load(Ordering::Relaxed)
    }

    /// Notes whether commits on any node wait for a standby.
    pub(super) fn note_standbys(&self, waits: bool) {
        self.waits_for_no_standby.store(!waits, Ordering::Relaxed);
    }

    /// Whether each transaction needs a mark at its nodes; see `tx`. Also as long as it is unknown whether there are standbys.
    pub(super) fn needs_marks(&self) -> bool {
        self.is_divided() && !self.waits_for_no_standby.load(Ordering::Relaxed)
    }

    /// The slot of a bucket.
    pub(super) fn slot(&self, bucket: Bucket) -> Slot {
        Slot::of(bucket, self.count())
    }

    /// All slots, from the first to the last.
    pub(super) fn all(&self) -> RangeInclusive<Slot> {
        let slot = |number| self.slot(Bucket::from_number(number));
        slot(0)..=slot(Bucket::COUNT - 1)
    }
}

impl Store {
    /// The number of a bucket's slot. It changes once, when the first connection finds a divided database.
    pub fn slot_number(&self, bucket: Bucket) -> i16 {
        self.target.slots().slot(bucket).to_column()
    }

    /// Divides items by slot, and says which one each was: each part can be one transaction on one node.
    pub fn by_slot<T>(&self, items: Vec<T>, bucket: impl Fn(&T) -> Bucket) -> Vec<Vec<(usize, T)>> {
        by_slot(items.into_iter().enumerate(), |(_, item)| self.target.slots().slot(bucket(item)))
            .into_values()
            .collect()
    }
}

impl Tx {
    /// The slot of a bucket.
    pub(super) fn slot(&self, bucket: Bucket) -> Slot {
        let slot = self.slots().slot(bucket);
        self.note_slot(slot);
        slot
    }
}

/// Divides items by slot, in the order of slots, so that transactions that lock rows of several cannot deadlock.
pub(super) fn by_slot<T>(items: impl IntoIterator<Item = T>, slot: impl Fn(&T) -> Slot) -> BTreeMap<Slot, Vec<T>> {
    let mut parts = BTreeMap::<_, Vec<_>>::new();
    for item in items {
        parts.entry(slot(&item)).or_default().push(item);
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_are_spread_over_slots_evenly() {
        for slots in [1, 2, 3, 32, 4_096] {
            let mut counts = BTreeMap::<i16, u16>::new();
            for number in 0..Bucket::COUNT {
                *counts.entry(Slot::of(Bucket::from_number(number), slots).to_column()).or_default() += 1;
            }
            assert_eq!(counts.len(), usize::from(slots));
            let (least, most) = (Bucket::COUNT / slots, Bucket::COUNT.div_ceil(slots));
            assert!(counts.values().all(|count| (least..=most).contains(count)), "{counts:?}");
            assert_eq!(counts.keys().next(), Some(&i16::from(slots > 1)));
        }
    }

    #[test]
    fn a_server_does_not_go_on_with_another_number_of_slots() {
        let count = SlotCount::default();
        let bucket = Bucket::from_number(4_095);
        assert_eq!(count.slot(bucket).to_column(), 0);
        assert_eq!((count.note(32), count.note(32)), (Ok(()), Ok(())));
        assert_eq!(count.slot(bucket).to_column(), 32);
        assert_eq!(count.note(1), Err(SlotsChanged { known: 32, found: 1 }));
        assert_eq!(count.slot(bucket).to_column(), 32);
    }
}
