//! Every revocation that some token may still outlive, in the order of the feed. There may be millions, so they are packed:
//! a session's takes 48 bytes, and its user's id.

use std::collections::BTreeMap;
use std::collections::HashMap;
use std::ops::Bound;

use uuid::Uuid;

use crate::clock::Timestamp;
use crate::id::ProjectId;
use crate::id::SessionId;
use crate::id::UserId;
use crate::session::RevokeReason;
use crate::session::revoked::Ended;
use crate::store::News;
use crate::store::Place;

/// Seconds on the clock that only goes forward.
pub(super) type Second = u32;

/// The most entries of a chunk: what one insertion moves at most.
const CHUNK: usize = 256;

/// See the module.
#[derive(Default)]
pub(super) struct Ledger {
    /// Each under a place that is not behind its first one, nor before the last of the chunk before.
    chunks: BTreeMap<Place, Chunk>,
    /// What the entries that are of no session have ended: few.
    others: BTreeMap<Place, Ended>,
    projects: Vec<ProjectId>,
    numbers: HashMap<ProjectId, u32>,
    len: usize,
}

/// Some entries, in order, and the users' ids that they name.
#[derive(Default)]
struct Chunk {
    slots: Vec<Slot>,
    users: Vec<u8>,
}

#[derive(Clone, Copy)]
struct Slot {
    xid: u64,
    at: Timestamp,
    /// The session, or the line of the audit.
    id: Uuid,
    until: Second,
    project: u32,
    /// Where the user's id begins.
    user_at: u16,
    user_length: u8,
    user_form: UserForm,
    kind: Kind,
    reason: RevokeReason,
}

/// How a user's id is kept.
#[derive(Clone, Copy, PartialEq, Eq)]
enum UserForm {
    None,
    Text,
    /// It is the text of a UUID, as it is usually written: 16 bytes in place of 36.
    Uuid,
}

#[derive(Clone, Copy)]
enum Kind {
    Session,
    Impersonation,
    Other,
}

impl Slot {
    const fn place(&self) -> Place {
        Place { xid: self.xid, id: self.id }
    }
}

/// Where an entry stands here. A transaction ends a session once, so the session's id does for the line of the audit.
pub(super) const fn place_of(news: &News) -> Place {
    match &news.ended {
        Ended::Session { id, .. } => Place { xid: news.place.xid, id: id.as_uuid() },
        Ended::User { .. } | Ended::Project { .. } | Ended::SigningKey(_) | Ended::ServerKey(_) => news.place,
    }
}

impl Ledger {
    /// Until when an entry is remembered.
    pub(super) fn until(&self, place: Place) -> Option<Second> {
        let (_, chunk) = self.chunks.range(..=place).next_back()?;
        chunk.find(place).ok().map(|at| chunk.slots[at].until)
    }

    /// Takes in an entry, or sets until when a known one is remembered.
    pub(super) fn insert(&mut self, news: &News, until: Second) {
        let place = place_of(news);
        let key = match self.chunks.range(..=place).next_back() {
            Some((key, _)) => *key,
            // Before all others.
            None => match self.chunks.pop_first() {
                Some((_, first)) => {
                    self.chunks.insert(place, first);
                    place
                }
                None => place,
            },
        };
        let project = self.number(&news.project);
        let is_last = self.chunks.range((Bound::Excluded(key), Bound::Unbounded)).next().is_none();
        let chunk = self.chunks.entry(key).or_default();
        let at = match chunk.find(place) {
            Ok(at) => {
                chunk.slots[at].until = until;
                return;
            }
            Err(at) => at,
        };
        self.len += 1;
        let kind = match &news.ended {
            Ended::Session { is_impersonation: false, .. } => Kind::Session,
            Ended::Session { is_impersonation: true, .. } => Kind::Impersonation,
            other => {
                self.others.insert(place, other.clone());
                Kind::Other
            }
        };
        let slot = Slot {
            xid: place.xid,
            at: news.at,
            id: place.id,
            until,
            project,
            user_at: 0,
            user_length: 0,
            user_form: UserForm::None,
            kind,
            reason: news.reason,
        };
        let user = news.user.as_ref();
        if chunk.slots.len() < CHUNK {
            return chunk.insert(at, slot, user);
        }
        // In order, as they mostly come, chunks are full; out of order, they are halved.
        let mut behind = if is_last && at == CHUNK { Chunk::default() } else { chunk.split() };
        if at <= chunk.slots.len() && chunk.slots.len() < CHUNK {
            chunk.insert(at, slot, user);
        } else {
            behind.insert(at - chunk.slots.len(), slot, user);
        }
        chunk.pack();
        let key = behind.slots.first().map_or(place, Slot::place);
        self.chunks.insert(key, behind);
    }

    fn number(&mut self, project: &ProjectId) -> u32 {
        if let Some(number) = self.numbers.get(project) {
            return *number;
        }
        let number = u32::try_from(self.projects.len()).unwrap_or(u32::MAX);
        self.projects.push(project.clone());
        self.numbers.insert(project.clone(), number);
        number
    }

    /// Entries in order, from a place on, and until when each is remembered; at most so many.
    pub(super) fn page(&self, start: Bound<Place>, entries_max: usize) -> Vec<(News, Second)> {
        let first = match start {
            Bound::Included(place) | Bound::Excluded(place) => place,
            Bound::Unbounded => Place { xid: 0, id: Uuid::nil() },
        };
        let key = self.chunks.range(..=first).next_back().map_or(first, |(key, _)| *key);
        let is_behind = |slot: &Slot| match start {
            Bound::Included(place) => slot.place() >= place,
            Bound::Excluded(place) => slot.place() > place,
            Bound::Unbounded => true,
        };
        let chunks = self.chunks.range(key..).map(|(_, chunk)| chunk);
        let slots = chunks.flat_map(|chunk| chunk.slots.iter().map(move |slot| (chunk, slot)));
        let some = slots.filter(|(_, slot)| is_behind(slot)).take(entries_max);
        some.filter_map(|(chunk, slot)| Some((self.news(chunk, slot)?, slot.until))).collect()
    }

    fn news(&self, chunk: &Chunk, slot: &Slot) -> Option<News> {
        let place = slot.place();
        let session = |is_impersonation| Ended::Session { id: SessionId::from_uuid(slot.id), is_impersonation };
        let ended = match slot.kind {
            Kind::Session => session(false),
            Kind::Impersonation => session(true),
            Kind::Other => self.others.get(&place)?.clone(),
        };
        Some(News {
            place,
            project: self.projects.get(usize::try_from(slot.project).ok()?)?.clone(),
            ended,
            user: chunk.user(slot),
            at: slot.at,
            reason: slot.reason,
            // What counts from here on is until when it is remembered.
            access_expires_at: slot.at,
        })
    }

    /// Forgets what is over, in a chunk or a few, and joins chunks that have become small. Returns where to go on; `None` at
    /// the end.
    pub(super) fn forget_some(&mut self, from: Option<Place>, now: Second) -> Option<Place> {
        const CHUNKS: usize = 4;
        let start = from.map_or(Bound::Unbounded, Bound::Included);
        let mut keys = self.chunks.range((start, Bound::Unbounded)).map(|(key, _)| *key).take(CHUNKS + 1);
        let keys: Vec<Place> = keys.by_ref().collect();
        let mut last: Option<(Place, usize)> = None;
        for key in keys.iter().take(CHUNKS) {
            let Some(chunk) = self.chunks.get_mut(key) else { continue };
            if chunk.slots.iter().any(|slot| slot.until <= now) {
                let gone = chunk.slots.iter().filter(|slot| slot.until <= now);
                for slot in gone {
                    self.len -= 1;
                    if matches!(slot.kind, Kind::Other) {
                        self.others.remove(&slot.place());
                    }
                }
                *chunk = chunk.copy(|slot| now < slot.until);
            }
            let len = chunk.slots.len();
            match last {
                _ if len == 0 => drop(self.chunks.remove(key)),
                Some((before, before_len)) if before_len + len <= CHUNK => {
                    let moved = self.chunks.remove(key).unwrap_or_default();
                    if let Some(chunk) = self.chunks.get_mut(&before) {
                        chunk.append(&moved);
                    }
                    last = Some((before, before_len + len));
                }
                Some(_) | None => last = Some((*key, len)),
            }
        }
        keys.get(CHUNKS).copied()
    }

    pub(super) const fn len(&self) -> usize {
        self.len
    }

    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }
}

impl Chunk {
    fn find(&self, place: Place) -> Result<usize, usize> {
        self.slots.binary_search_by_key(&place, Slot::place)
    }

    fn insert(&mut self, at: usize, slot: Slot, user: Option<&UserId>) {
        let slot = match user.map(UserId::as_str) {
            None => slot,
            Some(text) => match uuid_of(text) {
                Some(uuid) => self.keep(slot, UserForm::Uuid, uuid.as_bytes()),
                None => self.keep(slot, UserForm::Text, text.as_bytes()),
            },
        };
        self.slots.insert(at, slot);
    }

    /// Keeps a user's id: 255 bytes at most, so that those of all entries fit.
    fn keep(&mut self, slot: Slot, user_form: UserForm, id: &[u8]) -> Slot {
        let user_at = u16::try_from(self.users.len()).expect("256 times 255 bytes");
        let user_length = u8::try_from(id.len()).expect("255 bytes at most");
        self.users.extend_from_slice(id);
        Slot { user_at, user_length, user_form, ..slot }
    }

    fn bytes(&self, slot: &Slot) -> &[u8] {
        let at = usize::from(slot.user_at);
        &self.users[at..at + usize::from(slot.user_length)]
    }

    fn user(&self, slot: &Slot) -> Option<UserId> {
        let bytes = self.bytes(slot);
        match slot.user_form {
            UserForm::None => None,
            UserForm::Text => UserId::parse(std::str::from_utf8(bytes).ok()?),
            UserForm::Uuid => UserId::parse(Uuid::from_slice(bytes).ok()?.hyphenated().encode_lower(&mut [0; 36])),
        }
    }

    /// A copy of some of it, without a byte to spare.
    fn copy(&self, stays: impl Fn(&Slot) -> bool) -> Self {
        let mut copy =
            Self { slots: Vec::with_capacity(self.slots.iter().filter(|slot| stays(slot)).count()), users: vec![] };
        let bytes = self.slots.iter().filter(|slot| stays(slot)).map(|slot| usize::from(slot.user_length)).sum();
        copy.users.reserve_exact(bytes);
        for slot in self.slots.iter().filter(|slot| stays(slot)) {
            let kept = copy.keep(*slot, slot.user_form, self.bytes(slot));
            copy.slots.push(kept);
        }
        copy
    }

    /// Takes the second half away.
    fn split(&mut self) -> Self {
        let middle = self.slots[self.slots.len() / 2].place();
        let behind = self.copy(|slot| slot.place() >= middle);
        *self = self.copy(|slot| slot.place() < middle);
        behind
    }

    fn append(&mut self, other: &Self) {
        for slot in &other.slots {
            let kept = self.keep(*slot, slot.user_form, other.bytes(slot));
            self.slots.push(kept);
        }
        self.pack();
    }

    fn pack(&mut self) {
        self.slots.shrink_to_fit();
        self.users.shrink_to_fit();
    }
}

/// The UUID that a text is the usual spelling of: that which it is printed in.
fn uuid_of(text: &str) -> Option<Uuid> {
    let is_usual = text.len() == 36 && !text.bytes().any(|byte| byte.is_ascii_uppercase());
    is_usual.then(|| Uuid::try_parse(text).ok()).flatten()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::clock;
    use crate::id::KeyId;

    fn news(xid: u64, at: u8) -> News {
        let now = Timestamp::from_seconds(1_000);
        let id = clock::new_uuid();
        let project = ProjectId::parse(["shop", "demo"][usize::from(at % 2)]).expect("a name");
        let users = ["ada", "3f2504e0-4f89-11d3-9a0c-0305e82c3301", "3F2504E0-4F89-11D3-9A0C-0305E82C3301"];
        let user = users.get(usize::from(at % 4)).and_then(|text| UserId::parse(text));
        let ended = match at % 16 {
            0 => Ended::Project { epoch: 7 },
            1 => Ended::SigningKey(KeyId::from_uuid(id)),
            _ => Ended::Session { id: SessionId::from_uuid(id), is_impersonation: at.is_multiple_of(3) },
        };
        let reason = RevokeReason::SignedOut;
        News { place: Place { xid, id }, project, ended, user, at: now, reason, access_expires_at: now }
    }

    fn all(ledger: &Ledger) -> Vec<News> {
        let (mut all, mut start) = (vec![], Bound::Unbounded);
        loop {
            let page = ledger.page(start, 100);
            let Some((last, _)) = page.last() else { return all };
            start = Bound::Excluded(last.place);
            all.extend(page.into_iter().map(|(news, _)| news));
        }
    }

    /// In any order of their coming, what goes in comes out, in order; and what is over is forgotten.
    #[test]
    fn what_is_kept_comes_out_as_it_went_in() {
        for order in 0..3 {
            let count = 5_000_u64;
            let mut expected: Vec<News> =
                (0..count).map(|at| news(at / 3, u8::try_from(at * 7 % 251).expect("small"))).collect();
            match order {
                0 => {}
                1 => expected.reverse(),
                _ => expected.sort_by_key(|news| news.place.id.as_u128().wrapping_mul(0x9e37_79b9_7f4a_7c15)),
            }
            let mut ledger = Ledger::default();
            for (at, news) in (0..).zip(&expected) {
                ledger.insert(news, 10 + at % 2);
                assert_eq!(ledger.until(place_of(news)), Some(10 + at % 2));
            }
            let kept: BTreeSet<Place> =
                expected.iter().zip(0..).filter(|(_, at)| at % 2 == 1).map(|(news, _)| place_of(news)).collect();
            expected.sort_by_key(place_of);
            assert_eq!((all(&ledger), ledger.len()), (expected.clone(), expected.len()), "{order}");
            let from = place_of(&expected[1_234]);
            assert_eq!(ledger.page(Bound::Included(from), 1)[0].0, expected[1_234]);
            assert_eq!(ledger.page(Bound::Excluded(from), 1)[0].0, expected[1_235]);

            // Once more, and for longer.
            ledger.insert(&expected[7], 12);
            assert_eq!((ledger.len(), ledger.until(place_of(&expected[7]))), (expected.len(), Some(12)));
            let mut kept = kept;
            kept.insert(place_of(&expected[7]));
            let mut from = None;
            loop {
                from = ledger.forget_some(from, 10);
                if from.is_none() {
                    break;
                }
            }
            let left = all(&ledger);
            assert_eq!(left.iter().map(place_of).collect::<BTreeSet<_>>(), kept, "{order}");
            assert_eq!(ledger.len(), kept.len());
            assert!(left.iter().all(|news| expected.contains(news)));
            while let Some(next) = ledger.forget_some(from, 12) {
                from = Some(next);
            }
            assert!(ledger.len() == 0 && ledger.chunks.is_empty() && ledger.others.is_empty());
        }
    }

    #[test]
    fn an_entry_is_small() {
        assert_eq!(size_of::<Slot>(), 48);
    }
}
