//! A table of a fixed size for what was found out about texts, by the digest of each: read without a lock, and by any number
//! of cores at once without one waiting for another.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;

use arc_swap::ArcSwapOption;

/// How many places each digest may take. With more, fewer are pushed out early, and a miss takes longer.
const WAYS: usize = 4;

/// The SHA-256 of a text.
pub type Digest = [u8; 32];

/// See the module. What was not asked for lately makes way for what is new.
pub struct Slots<V> {
    sets: Box<[Set<V>]>,
}

/// The places for all digests that begin alike.
struct Set<V> {
    /// A part of each digest, so that a look at what is in a place is seldom in vain. 0 for an empty one.
    tags: [AtomicU64; WAYS],
    entries: [ArcSwapOption<Entry<V>>; WAYS],
}

struct Entry<V> {
    digest: Digest,
    value: V,
    /// Asked for since a newcomer last looked for a place here.
    was_used: AtomicBool,
}

impl<V: Clone> Slots<V> {
    /// A table for so many at the most, rounded up to a power of two.
    pub fn new(entries_max: usize) -> Self {
        let sets = entries_max.div_ceil(WAYS).next_power_of_two();
        let empty = || Set { tags: Default::default(), entries: std::array::from_fn(|_| ArcSwapOption::empty()) };
        Self { sets: (0..sets).map(|_| empty()).collect() }
    }

    /// What is known of the text with this digest.
    pub fn find(&self, digest: &Digest) -> Option<V> {
        let (set, tag) = self.place(digest);
        let ways = (0..WAYS).filter(|way| set.tags[*way].load(Ordering::Relaxed) == tag);
        ways.into_iter().find_map(|way| {
            let entry = set.entries[way].load();
            let entry = entry.as_ref().filter(|entry| entry.digest == *digest)?;
            // Written once, not with every look: or all cores would fight for this line of memory.
            if !entry.was_used.load(Ordering::Relaxed) {
                entry.was_used.store(true, Ordering::Relaxed);
            }
            Some(entry.value.clone())
        })
    }

    /// Takes in what was found out.
    pub fn insert(&self, digest: Digest, value: V) {
        let (set, tag) = self.place(&digest);
        let way = set.way_for(tag, usize::from(digest[DIGEST_END]));
        // Between these two, a look finds nothing: no more than a miss.
        set.entries[way].store(Some(Arc::new(Entry { digest, value, was_used: AtomicBool::new(false) })));
        set.tags[way].store(tag, Ordering::Relaxed);
    }

    fn place(&self, digest: &Digest) -> (&Set<V>, u64) {
        let part = |at: usize| u64::from_le_bytes(std::array::from_fn(|byte| digest[at + byte]));
        // The number of sets is a power of two.
        let set = usize::try_from(part(0) & (self.sets.len() as u64 - 1)).expect("below the number of sets");
        (&self.sets[set], part(8) | 1)
    }
}

const DIGEST_END: usize = 31;

impl<V> Set<V> {
    /// Where a newcomer goes: to its own place, to an empty one, or to one that nobody asked for lately.
    fn way_for(&self, tag: u64, chance: usize) -> usize {
        let with = |wanted: u64| (0..WAYS).find(|way| self.tags[*way].load(Ordering::Relaxed) == wanted);
        let unused = || {
            (0..WAYS).map(|step| (chance + step) % WAYS).find(|way| {
                self.entries[*way].load().as_ref().is_none_or(|entry| !entry.was_used.load(Ordering::Relaxed))
            })
        };
        with(tag).or_else(|| with(0)).or_else(unused).unwrap_or_else(|| {
            // Everyone was asked for: one has bad luck, and the others have to show again that they are needed.
            for entry in &self.entries {
                if let Some(entry) = entry.load().as_ref() {
                    entry.was_used.store(false, Ordering::Relaxed);
                }
            }
            chance % WAYS
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::token::fingerprint;

    fn digest(number: usize) -> Digest {
        fingerprint(&number.to_be_bytes())
    }

    #[test]
    fn what_is_found_is_what_was_put_there() {
        let slots = Slots::new(64);
        for number in 0..1_000 {
            slots.insert(digest(number), number);
            assert_eq!(slots.find(&digest(number)), Some(number), "the newest is always there");
        }
        let found: Vec<usize> = (0..1_000).filter(|number| slots.find(&digest(*number)).is_some()).collect();
        assert!(found.iter().all(|number| slots.find(&digest(*number)) == Some(*number)));
        assert!((1..=64).contains(&found.len()), "{} of 64", found.len());
        assert_eq!(slots.find(&digest(1_000)), None);
    }

    #[test]
    fn one_place_is_enough_for_the_same_text() {
        let slots = Slots::new(WAYS);
        for number in 0..100 {
            slots.insert(digest(7), number);
        }
        for other in 0..WAYS - 1 {
            slots.insert(digest(other), other);
        }
        assert_eq!(slots.find(&digest(7)), Some(99));
        assert!((0..WAYS - 1).all(|other| slots.find(&digest(other)) == Some(other)));
    }

    #[test]
    fn what_is_asked_for_outlives_what_is_not() {
        let slots = Slots::new(WAYS);
        slots.insert(digest(0), 0);
        for newcomer in 1..1_000 {
            assert_eq!(slots.find(&digest(0)), Some(0), "after {newcomer}");
            slots.insert(digest(newcomer), newcomer);
        }
    }

    /// Writers and readers at once: nobody is ever given what belongs to another text.
    #[test]
    fn nobody_is_given_anothers() {
        let slots = Slots::new(8);
        std::thread::scope(|scope| {
            for start in 0..4 {
                let slots = &slots;
                scope.spawn(move || {
                    for step in 0..50_000 {
                        let number = (start * 7 + step * 13) % 61;
                        match slots.find(&digest(number)) {
                            Some(found) => assert_eq!(found, number),
                            None => slots.insert(digest(number), number),
                        }
                    }
                });
            }
        });
    }
}
