//! Every revocation of a token that may not have expired yet, in the order of the feed. There may be millions, so they are
//! packed: the revocation of a session takes 48 bytes, plus the user's id.

use std::collections::BTreeMap;
use std::collections::HashMap;
use std::ops::Bound;

use uuid::Uuid;

use crate::store::FeedPlace;
use crate::store::PublishedRevocation;
use crate::store::WriterId;
use sessiond_core::clock::Timestamp;
use sessiond_core::id::ProjectId;
use sessiond_core::id::SessionId;
use sessiond_core::id::UserId;
use sessiond_core::session::RevokeReason;
use sessiond_core::session::revoked::RevocationTarget;

/// Seconds on the monotonic clock.
pub(super) type Second = u32;

/// The most entries that one page looks at: most of them may be of other projects, and the feed waits meanwhile.
const SCAN_MAX: usize = 16_384;

/// The most entries of a chunk, and so the most that one insertion moves.
const CHUNK: usize = 256;

/// The packed revocations.
#[derive(Default)]
pub(super) struct Backlog {
    /// The key of a chunk is at most its first entry's, and not before the last one's of the previous chunk.
    chunks: BTreeMap<EntryKey, Chunk>,
    /// The contents of the few entries that revoke something other than one session.
    others: BTreeMap<EntryKey, RevocationTarget>,
    writers: Writers,
    projects: Vec<ProjectId>,
    numbers: HashMap<ProjectId, u32>,
    /// How many entries each project has.
    counts: Vec<usize>,
    len: usize,
}

/// Where an entry is in the backlog: by writer, in the order in which they were first seen, and by number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct EntryKey {
    writer: u32,
    seq: u32,
    /// The session, or the audit event. Entries from before there were writers share a writer and a number.
    id: Uuid,
}

/// The writers that have entries, each with an index that takes less space than its id.
#[derive(Default)]
struct Writers {
    /// Of each index, the writer and how many entries it has. Without entries, the index is free.
    counted: Vec<(WriterId, usize)>,
    free: Vec<u32>,
    indexes: HashMap<WriterId, u32>,
}

impl Writers {
    /// Adds an entry of a writer. Returns its index.
    fn add(&mut self, writer: WriterId) -> u32 {
        let index = self.indexes.get(&writer).copied().or_else(|| self.free.pop());
        let index = index.unwrap_or_else(|| {
            self.counted.push((writer, 0));
            u32::try_from(self.counted.len() - 1).expect("fewer writers than entries")
        });
        self.indexes.insert(writer, index);
        if let Some(counted) = self.counted.get_mut(index as usize) {
            *counted = (writer, counted.1 + 1);
        }
        index
    }

    /// Removes an entry of a writer.
    fn remove(&mut self, index: u32) {
        let Some((writer, count)) = self.counted.get_mut(index as usize) else { return };
        *count -= 1;
        if *count == 0 {
            self.indexes.remove(writer);
            self.free.push(index);
        }
    }

    fn id(&self, index: u32) -> Option<WriterId> {
        self.counted.get(index as usize).map(|(writer, _)| *writer)
    }
}

/// Some entries, in order, and the ids of their users.
#[derive(Default)]
struct Chunk {
    entries: Vec<PackedEntry>,
    users: Vec<u8>,
}

#[derive(Clone, Copy)]
struct PackedEntry {
    writer: u32,
    seq: u32,
    at: Timestamp,
    /// The session, or the audit event.
    id: Uuid,
    until: Second,
    project: u32,
    /// Where the user's id begins.
    user_at: u16,
    user_length: u8,
    user_form: UserForm,
    kind: EntryKind,
    reason: RevokeReason,
}

/// How a user's id is kept.
#[derive(Clone, Copy, PartialEq, Eq)]
enum UserForm {
    None,
    Text,
    /// The usual text form of a UUID, stored in 16 bytes in place of 36.
    Uuid,
}

#[derive(Clone, Copy)]
enum EntryKind {
    Session,
    Impersonation,
    Other,
}

impl PackedEntry {
    const fn key(&self) -> EntryKey {
        EntryKey { writer: self.writer, seq: self.seq, id: self.id }
    }
}

/// The place of a revocation in the backlog, where the session's id stands for the audit event's.
pub(super) const fn place_of(revocation: &PublishedRevocation) -> FeedPlace {
    match &revocation.ended {
        RevocationTarget::Session { id, .. } => FeedPlace { id: id.as_uuid(), ..revocation.place },
        RevocationTarget::User { .. }
        | RevocationTarget::Project { .. }
        | RevocationTarget::SigningKey(_)
        | RevocationTarget::ServerKey(_)
        | RevocationTarget::Superseded { .. } => revocation.place,
    }
}

impl Backlog {
    /// The key of an entry at a place; `None` if the writer has none.
    fn key(&self, place: FeedPlace) -> Option<EntryKey> {
        let writer = *self.writers.indexes.get(&place.writer)?;
        Some(EntryKey { writer, seq: place.seq, id: place.id })
    }

    /// Until when a revocation is retained; `None` if it is not known.
    pub(super) fn until(&self, place: FeedPlace) -> Option<Second> {
        let place = self.key(place)?;
        let (_, chunk) = self.chunks.range(..=place).next_back()?;
        chunk.find(place).ok().map(|at| chunk.entries[at].until)
    }

    /// The writers that have entries, and how many each has.
    pub(super) fn writers(&self) -> impl Iterator<Item = (WriterId, usize)> {
        self.writers.counted.iter().copied().filter(|(_, count)| *count > 0)
    }

    /// Inserts a revocation, or sets until when a known one is retained.
    pub(super) fn insert(&mut self, revocation: &PublishedRevocation, until: Second) {
        let public = place_of(revocation);
        let place = EntryKey { writer: self.writers.add(public.writer), seq: public.seq, id: public.id };
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
        let project = self.number(&revocation.project);
        let is_last = self.chunks.range((Bound::Excluded(key), Bound::Unbounded)).next().is_none();
        let chunk = self.chunks.entry(key).or_default();
        let at = match chunk.find(place) {
            Ok(at) => {
                chunk.entries[at].until = until;
                // Already counted.
                return self.writers.remove(place.writer);
            }
            Err(at) => at,
        };
        self.len += 1;
        if let Some(count) = self.counts.get_mut(project as usize) {
            *count += 1;
        }
        let kind = match &revocation.ended {
            RevocationTarget::Session { is_impersonation: false, .. } => EntryKind::Session,
            RevocationTarget::Session { is_impersonation: true, .. } => EntryKind::Impersonation,
            other => {
                self.others.insert(place, other.clone());
                EntryKind::Other
            }
        };
        let entry = PackedEntry {
            writer: place.writer,
            seq: place.seq,
            at: revocation.at,
            id: place.id,
            until,
            project,
            user_at: 0,
            user_length: 0,
            user_form: UserForm::None,
            kind,
            reason: revocation.reason,
        };
        let user = revocation.user.as_ref();
        if chunk.entries.len() < CHUNK {
            return chunk.insert(at, entry, user);
        }
        // Insertion in order, the usual case, leaves full chunks; insertion out of order splits them in half.
        let mut behind = if is_last && at == CHUNK { Chunk::default() } else { chunk.split() };
        if at <= chunk.entries.len() && chunk.entries.len() < CHUNK {
            chunk.insert(at, entry, user);
        } else {
            behind.insert(at - chunk.entries.len(), entry, user);
        }
        chunk.pack();
        let key = behind.entries.first().map_or(place, PackedEntry::key);
        self.chunks.insert(key, behind);
    }

    fn number(&mut self, project: &ProjectId) -> u32 {
        if let Some(number) = self.numbers.get(project) {
            return *number;
        }
        let number = u32::try_from(self.projects.len()).unwrap_or(u32::MAX);
        self.projects.push(project.clone());
        self.counts.push(0);
        self.numbers.insert(project.clone(), number);
        number
    }

    /// At most `entries_max` revocations of a project in order, after a key, and until when each is retained; and where to continue,
    /// if there may be more. Leaves out those up to the number that was sent of each writer. Looks at no more than [`SCAN_MAX`]
    /// entries, so a page may be short, or empty.
    pub(super) fn page(
        &self,
        project: &ProjectId,
        after: Option<EntryKey>,
        sent: impl Fn(WriterId) -> u32,
        entries_max: usize,
    ) -> (Vec<(PublishedRevocation, Second)>, Option<EntryKey>) {
        let (mut page, mut last, mut scanned) = (vec![], None, 0);
        let Some(project) = self.numbers.get(project).copied() else { return (page, None) };
        let mut start = after.map_or(Bound::Unbounded, Bound::Excluded);
        'writers: loop {
            for (chunk, entry) in self.entries(start) {
                if page.len() == entries_max || scanned == SCAN_MAX {
                    return (page, last);
                }
                scanned += 1;
                // Entries from before there were writers have the number zero, and are always sent.
                let sent = self.writers.id(entry.writer).map_or(0, &sent);
                if (1..=sent).contains(&entry.seq) {
                    let Some(seq) = sent.checked_add(1) else { continue };
                    start = Bound::Included(EntryKey { writer: entry.writer, seq, id: Uuid::nil() });
                    continue 'writers;
                }
                last = Some(entry.key());
                if entry.project != project {
                    continue;
                }
                page.extend(self.unpack(chunk, entry).map(|revocation| (revocation, entry.until)));
            }
            return (page, None);
        }
    }

    /// The entries from a key on.
    fn entries(&self, start: Bound<EntryKey>) -> impl Iterator<Item = (&Chunk, &PackedEntry)> {
        let chunks = match start {
            Bound::Included(first) | Bound::Excluded(first) => {
                let key = self.chunks.range(..=first).next_back().map_or(first, |(key, _)| *key);
                self.chunks.range(key..)
            }
            Bound::Unbounded => self.chunks.range(..),
        };
        let is_behind = move |entry: &PackedEntry| match start {
            Bound::Included(key) => entry.key() >= key,
            Bound::Excluded(key) => entry.key() > key,
            Bound::Unbounded => true,
        };
        chunks.flat_map(move |(_, chunk)| {
            let from = chunk.entries.partition_point(|entry| !is_behind(entry));
            chunk.entries[from..].iter().map(move |entry| (chunk, entry))
        })
    }

    fn unpack(&self, chunk: &Chunk, entry: &PackedEntry) -> Option<PublishedRevocation> {
        let session =
            |is_impersonation| RevocationTarget::Session { id: SessionId::from_uuid(entry.id), is_impersonation };
        let ended = match entry.kind {
            EntryKind::Session => session(false),
            EntryKind::Impersonation => session(true),
            EntryKind::Other => self.others.get(&entry.key())?.clone(),
        };
        Some(PublishedRevocation {
            place: FeedPlace { writer: self.writers.id(entry.writer)?, seq: entry.seq, id: entry.id },
            project: self.projects.get(usize::try_from(entry.project).ok()?)?.clone(),
            ended,
            user: chunk.user(entry),
            at: entry.at,
            reason: entry.reason,
            // Only the retention matters from here on.
            access_expires_at: entry.at,
        })
    }

    /// Forgets expired revocations in a few chunks, and joins chunks that have become small. Returns where to continue; `None`
    /// at the end.
    pub(super) fn forget_some(&mut self, from: Option<EntryKey>, now: Second) -> Option<EntryKey> {
        const CHUNKS: usize = 4;
        let start = from.map_or(Bound::Unbounded, Bound::Included);
        let mut keys = self.chunks.range((start, Bound::Unbounded)).map(|(key, _)| *key).take(CHUNKS + 1);
        let keys: Vec<EntryKey> = keys.by_ref().collect();
        let mut last: Option<(EntryKey, usize)> = None;
        for key in keys.iter().take(CHUNKS) {
            let Some(chunk) = self.chunks.get_mut(key) else { continue };
            if chunk.entries.iter().any(|entry| entry.until <= now) {
                let gone = chunk.entries.iter().filter(|entry| entry.until <= now);
                for entry in gone {
                    self.len -= 1;
                    if let Some(count) = self.counts.get_mut(entry.project as usize) {
                        *count -= 1;
                    }
                    self.writers.remove(entry.writer);
                    if matches!(entry.kind, EntryKind::Other) {
                        self.others.remove(&entry.key());
                    }
                }
                *chunk = chunk.copy(|entry| now < entry.until);
            }
            let len = chunk.entries.len();
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

    /// How many revocations of a project there are.
    pub(super) fn len_of(&self, project: &ProjectId) -> usize {
        let number = self.numbers.get(project).copied().unwrap_or(u32::MAX);
        self.counts.get(number as usize).copied().unwrap_or(0)
    }

    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }
}

impl Chunk {
    fn find(&self, key: EntryKey) -> Result<usize, usize> {
        self.entries.binary_search_by_key(&key, PackedEntry::key)
    }

    fn insert(&mut self, at: usize, entry: PackedEntry, user: Option<&UserId>) {
        let entry = match user.map(UserId::as_str) {
            None => entry,
            Some(text) => match uuid_of(text) {
                Some(uuid) => self.keep(entry, UserForm::Uuid, uuid.as_bytes()),
                None => self.keep(entry, UserForm::Text, text.as_bytes()),
            },
        };
        self.entries.insert(at, entry);
    }

    /// Stores a user's id of at most 255 bytes, so that the ids of all entries fit.
    fn keep(&mut self, entry: PackedEntry, user_form: UserForm, id: &[u8]) -> PackedEntry {
        let user_at = u16::try_from(self.users.len()).expect("256 times 255 bytes");
        let user_length = u8::try_from(id.len()).expect("255 bytes at most");
        self.users.extend_from_slice(id);
        PackedEntry { user_at, user_length, user_form, ..entry }
    }

    fn bytes(&self, entry: &PackedEntry) -> &[u8] {
        let at = usize::from(entry.user_at);
        &self.users[at..at + usize::from(entry.user_length)]
    }

    fn user(&self, entry: &PackedEntry) -> Option<UserId> {
        let bytes = self.bytes(entry);
        match entry.user_form {
            UserForm::None => None,
            UserForm::Text => UserId::parse(std::str::from_utf8(bytes).ok()?),
            UserForm::Uuid => UserId::parse(Uuid::from_slice(bytes).ok()?.hyphenated().encode_lower(&mut [0; 36])),
        }
    }

    /// Copies the entries that stay, without spare capacity.
    fn copy(&self, stays: impl Fn(&PackedEntry) -> bool) -> Self {
        let mut copy = Self {
            entries: Vec::with_capacity(self.entries.iter().filter(|entry| stays(entry)).count()),
            users: vec![],
        };
        let bytes = self.entries.iter().filter(|entry| stays(entry)).map(|entry| usize::from(entry.user_length)).sum();
        copy.users.reserve_exact(bytes);
        for entry in self.entries.iter().filter(|entry| stays(entry)) {
            let kept = copy.keep(*entry, entry.user_form, self.bytes(entry));
            copy.entries.push(kept);
        }
        copy
    }

    /// Splits off the second half.
    fn split(&mut self) -> Self {
        let middle = self.entries[self.entries.len() / 2].key();
        let behind = self.copy(|entry| entry.key() >= middle);
        *self = self.copy(|entry| entry.key() < middle);
        behind
    }

    fn append(&mut self, other: &Self) {
        for entry in &other.entries {
            let kept = self.keep(*entry, entry.user_form, other.bytes(entry));
            self.entries.push(kept);
        }
        self.pack();
    }

    fn pack(&mut self) {
        self.entries.shrink_to_fit();
        self.users.shrink_to_fit();
    }
}

/// Parses a UUID in the usual form: lower-case with hyphens, as it is printed.
fn uuid_of(text: &str) -> Option<Uuid> {
    let is_usual = text.len() == 36 && !text.bytes().any(|byte| byte.is_ascii_uppercase());
    is_usual.then(|| Uuid::try_parse(text).ok()).flatten()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use sessiond_core::clock;
    use sessiond_core::id::KeyId;

    fn revocation(seq: u32, at: u8) -> PublishedRevocation {
        let now = Timestamp::from_seconds(1_000);
        let id = clock::new_uuid();
        let project = ProjectId::parse(["shop", "demo"][usize::from(at % 2)]).expect("a name");
        let users = ["ada", "3f2504e0-4f89-11d3-9a0c-0305e82c3301", "3F2504E0-4F89-11D3-9A0C-0305E82C3301"];
        let user = users.get(usize::from(at % 4)).and_then(|text| UserId::parse(text));
        let ended = match at % 16 {
            0 => RevocationTarget::Project { epoch: 7 },
            1 => RevocationTarget::SigningKey(KeyId::from_uuid(id)),
            _ => RevocationTarget::Session { id: SessionId::from_uuid(id), is_impersonation: at.is_multiple_of(3) },
        };
        let reason = RevokeReason::SignedOut;
        PublishedRevocation {
            place: FeedPlace { writer: WriterId::from_number(u64::from(at % 3)), seq, id },
            project,
            ended,
            user,
            at: now,
            reason,
            access_expires_at: now,
        }
    }

    fn all(backlog: &Backlog) -> Vec<PublishedRevocation> {
        after(backlog, |_| 0)
    }

    fn after(backlog: &Backlog, sent: impl Fn(WriterId) -> u32) -> Vec<PublishedRevocation> {
        let mut all = vec![];
        for name in ["shop", "demo"].map(|name| ProjectId::parse(name).expect("a name")) {
            let (mut own, mut start) = (vec![], None);
            loop {
                let (page, next) = backlog.page(&name, start, &sent, 100);
                own.extend(page.into_iter().map(|(revocation, _)| revocation));
                if next.is_none() {
                    break;
                }
                start = next;
            }
            assert!(own.iter().all(|revocation| revocation.project == name));
            assert!(own.is_sorted_by_key(|revocation| backlog.key(place_of(revocation))));
            all.extend(own);
        }
        all.sort_by_key(|revocation| backlog.key(place_of(revocation)));
        all
    }

    #[test]
    fn a_page_looks_at_a_bounded_number_of_other_projects_entries() {
        let mut backlog = Backlog::default();
        for seq in 1..=40_000 {
            backlog.insert(&revocation(seq, 2), 10);
        }
        let last = revocation(40_001, 5);
        backlog.insert(
            &PublishedRevocation { place: FeedPlace { writer: WriterId::from_number(2), ..last.place }, ..last },
            10,
        );
        let (mut pages, mut start) = (vec![], None);
        loop {
            let (page, next) = backlog.page(&ProjectId::parse("demo").expect("a name"), start, |_| 0, 100);
            pages.push(page.len());
            match next {
                Some(next) => start = Some(next),
                None => break,
            }
        }
        assert_eq!(pages, [0, 0, 1]);
        assert!(backlog.page(&ProjectId::parse("none").expect("a name"), None, |_| 0, 100).1.is_none());
    }

    /// In any order of insertion, revocations come out in order, and expired ones are forgotten.
    #[test]
    fn revocations_come_out_in_order_and_unchanged() {
        for order in 0..3 {
            let count = 5_000_u32;
            let mut expected: Vec<PublishedRevocation> =
                (0..count).map(|at| revocation(at / 3, u8::try_from(at * 7 % 251).expect("small"))).collect();
            match order {
                0 => {}
                1 => expected.reverse(),
                _ => {
                    expected.sort_by_key(|revocation| revocation.place.id.as_u128().wrapping_mul(0x9e37_79b9_7f4a_7c15))
                }
            }
            let mut backlog = Backlog::default();
            for (at, revocation) in (0..).zip(&expected) {
                backlog.insert(revocation, 10 + at % 2);
                assert_eq!(backlog.until(place_of(revocation)), Some(10 + at % 2));
            }
            let kept: BTreeSet<FeedPlace> = expected
                .iter()
                .zip(0..)
                .filter(|(_, at)| at % 2 == 1)
                .map(|(revocation, _)| place_of(revocation))
                .collect();
            expected.sort_by_key(|revocation| backlog.key(place_of(revocation)));
            assert_eq!((all(&backlog), backlog.len()), (expected.clone(), expected.len()), "{order}");
            for name in ["shop", "demo", "blog"].map(|name| ProjectId::parse(name).expect("a name")) {
                let count = expected.iter().filter(|revocation| revocation.project == name).count();
                assert_eq!(backlog.len_of(&name), count, "{name}");
            }
            assert_eq!(backlog.writers().map(|(_, count)| count).sum::<usize>(), expected.len());
            let from = backlog.key(place_of(&expected[1_234]));
            let (page, next) = backlog.page(&expected[1_235].project, from, |_| 0, 1);
            assert_eq!(page[0].0, expected[1_235]);
            assert_eq!(next, backlog.key(place_of(&expected[1_235])));

            // What a subscriber has of each writer is left out, except from before there were writers.
            let sent = |writer: WriterId| [0, 700, u32::MAX][usize::try_from(writer.number()).expect("small")];
            let is_new = |revocation: &&PublishedRevocation| {
                revocation.place.seq == 0 || revocation.place.seq > sent(revocation.place.writer)
            };
            let new: Vec<_> = expected.iter().filter(is_new).cloned().collect();
            assert_eq!(after(&backlog, sent), new);
            assert!(new.len() > 2_000 && new.len() < 4_000, "{}", new.len());

            // Inserted again, with a longer retention.
            backlog.insert(&expected[7], 12);
            assert_eq!((backlog.len(), backlog.until(place_of(&expected[7]))), (expected.len(), Some(12)));
            let mut kept = kept;
            kept.insert(place_of(&expected[7]));
            let mut from = None;
            loop {
                from = backlog.forget_some(from, 10);
                if from.is_none() {
                    break;
                }
            }
            let left = all(&backlog);
            assert_eq!(left.iter().map(place_of).collect::<BTreeSet<_>>(), kept, "{order}");
            assert_eq!(backlog.len(), kept.len());
            assert!(left.iter().all(|revocation| expected.contains(revocation)));
            while let Some(next) = backlog.forget_some(from, 12) {
                from = Some(next);
            }
            assert!(backlog.len() == 0 && backlog.chunks.is_empty() && backlog.others.is_empty());
            assert!(backlog.counts.iter().all(|count| *count == 0));
            assert!(backlog.writers().next().is_none() && backlog.writers.indexes.is_empty());
            assert_eq!(backlog.writers.free.len(), backlog.writers.counted.len(), "every index is free");
        }
    }

    #[test]
    fn an_entry_is_small() {
        assert_eq!(size_of::<PackedEntry>(), 48);
    }
}
