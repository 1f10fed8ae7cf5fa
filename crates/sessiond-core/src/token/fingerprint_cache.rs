//! A cache of fixed size, keyed by the SHA-256 of a text. Reads take no lock and do not contend.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;

use arc_swap::ArcSwapOption;

/// The associativity: how many slots a digest may use. More slots evict fewer entries early, but make misses slower.
const WAYS: usize = 4;

/// The SHA-256 of a text.
pub type Fingerprint = [u8; 32];

/// A cache of fixed size, keyed by the SHA-256 of a text. New entries evict those that were not read recently.
pub struct FingerprintCache<V> {
    sets: Box<[Set<V>]>,
}

/// The slots of all digests with the same first bits.
struct Set<V> {
    /// A part of each entry's digest, which avoids most reads of other entries. 0 for an empty slot.
    tags: [AtomicU64; WAYS],
    entries: [ArcSwapOption<Entry<V>>; WAYS],
}

struct Entry<V> {
    digest: Fingerprint,
    value: V,
    /// Whether it was read since the last eviction in this set.
    was_used: AtomicBool,
}

impl<V: Clone> FingerprintCache<V> {
    /// A cache for at most `entries_max` entries, rounded up to a power of two.
    pub fn new(entries_max: usize) -> Self {
        let sets = entries_max.div_ceil(WAYS).next_power_of_two();
        let empty = || Set { tags: Default::default(), entries: std::array::from_fn(|_| ArcSwapOption::empty()) };
        Self { sets: (0..sets).map(|_| empty()).collect() }
    }

    /// The value of this digest.
    pub fn find(&self, digest: &Fingerprint) -> Option<V> {
        let (set, tag) = self.slot(digest);
        let ways = (0..WAYS).filter(|way| set.tags[*way].load(Ordering::Relaxed) == tag);
        ways.into_iter().find_map(|way| {
            let entry = set.entries[way].load();
            let entry = entry.as_ref().filter(|entry| entry.digest == *digest)?;
            // Written once, not on every read, so that cores do not contend for this cache line.
            if !entry.was_used.load(Ordering::Relaxed) {
                entry.was_used.store(true, Ordering::Relaxed);
            }
            Some(entry.value.clone())
        })
    }

    /// Inserts or replaces the value of this digest.
    pub fn insert(&self, digest: Fingerprint, value: V) {
        let (set, tag) = self.slot(&digest);
        let chance = usize::from(digest[DIGEST_END]);
        let way = set.way_for(tag, chance).unwrap_or_else(|| set.way_of_used(chance));
        set.store(way, tag, digest, value);
    }

    /// The same for a value that may never be read: it evicts none that was read recently.
    pub fn insert_unless_full(&self, digest: Fingerprint, value: V) {
        let (set, tag) = self.slot(&digest);
        if let Some(way) = set.way_for(tag, usize::from(digest[DIGEST_END])) {
            set.store(way, tag, digest, value);
        }
    }

    fn slot(&self, digest: &Fingerprint) -> (&Set<V>, u64) {
        let part = |at: usize| u64::from_le_bytes(std::array::from_fn(|byte| digest[at + byte]));
        // The number of sets is a power of two.
        let set = usize::try_from(part(0) & (self.sets.len() as u64 - 1)).expect("below the number of sets");
        (&self.sets[set], part(8) | 1)
    }
}

const DIGEST_END: usize = 31;

impl<V> Set<V> {
    /// The slot to insert at: the digest's present one, an empty one, or that of an entry that was not read recently.
    fn way_for(&self, tag: u64, chance: usize) -> Option<usize> {
        let with = |wanted: u64| (0..WAYS).find(|way| self.tags[*way].load(Ordering::Relaxed) == wanted);
        let unused = || {
            (0..WAYS).map(|step| (chance + step) % WAYS).find(|way| {
                self.entries[*way].load().as_ref().is_none_or(|entry| !entry.was_used.load(Ordering::Relaxed))
            })
        };
        with(tag).or_else(|| with(0)).or_else(unused)
    }

    /// The slot of a random entry, where all were read recently. Clears the marks of all.
    fn way_of_used(&self, chance: usize) -> usize {
        for entry in &self.entries {
            if let Some(entry) = entry.load().as_ref() {
                entry.was_used.store(false, Ordering::Relaxed);
            }
        }
        chance % WAYS
    }

    fn store(&self, way: usize, tag: u64, digest: Fingerprint, value: V) {
        // A read between these two stores is a miss.
        self.entries[way].store(Some(Arc::new(Entry { digest, value, was_used: AtomicBool::new(false) })));
        self.tags[way].store(tag, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::token::fingerprint;

    fn digest(number: usize) -> Fingerprint {
        fingerprint(&number.to_be_bytes())
    }

    #[test]
    fn a_find_returns_what_was_inserted() {
        let cache = FingerprintCache::new(64);
        for number in 0..1_000 {
            cache.insert(digest(number), number);
            assert_eq!(cache.find(&digest(number)), Some(number), "the newest is always there");
        }
        let found: Vec<usize> = (0..1_000).filter(|number| cache.find(&digest(*number)).is_some()).collect();
        assert!(found.iter().all(|number| cache.find(&digest(*number)) == Some(*number)));
        assert!((1..=64).contains(&found.len()), "{} of 64", found.len());
        assert_eq!(cache.find(&digest(1_000)), None);
    }

    #[test]
    fn the_same_text_uses_one_slot() {
        let cache = FingerprintCache::new(WAYS);
        for number in 0..100 {
            cache.insert(digest(7), number);
        }
        for other in 0..WAYS - 1 {
            cache.insert(digest(other), other);
        }
        assert_eq!(cache.find(&digest(7)), Some(99));
        assert!((0..WAYS - 1).all(|other| cache.find(&digest(other)) == Some(other)));
    }

    #[test]
    fn entries_that_are_read_outlive_others() {
        let cache = FingerprintCache::new(WAYS);
        cache.insert(digest(0), 0);
        for newcomer in 1..1_000 {
            assert_eq!(cache.find(&digest(0)), Some(0), "after {newcomer}");
            cache.insert(digest(newcomer), newcomer);
        }
    }

    #[test]
    fn what_may_never_be_read_takes_no_place_of_what_is() {
        let cache = FingerprintCache::new(WAYS);
        (0..WAYS).for_each(|number| cache.insert_unless_full(digest(number), number));
        let read = || (0..WAYS).filter(|number| cache.find(&digest(*number)) == Some(*number)).count();
        assert_eq!(read(), WAYS, "while there is room, and all are read now");
        (WAYS..1_000).for_each(|number| cache.insert_unless_full(digest(number), number));
        assert_eq!(read(), WAYS);
        cache.insert(digest(1_000), 1_000);
        assert_eq!(read(), WAYS - 1);
    }

    /// Concurrent reads and writes never return the value of another text.
    #[test]
    fn concurrent_reads_return_the_right_value() {
        let cache = FingerprintCache::new(8);
        std::thread::scope(|scope| {
            for start in 0..4 {
                let cache = &cache;
                scope.spawn(move || {
                    for step in 0..50_000 {
                        let number = (start * 7 + step * 13) % 61;
                        match cache.find(&digest(number)) {
                            Some(found) => assert_eq!(found, number),
                            None => cache.insert(digest(number), number),
                        }
                    }
                });
            }
        });
    }
}
