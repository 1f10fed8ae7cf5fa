//! Reads the audit log: the entries of its three parts, merged in the order of time, page by page.
//!
//! The parts are `revocations`, `audit_events`, and `sessions`: as long as a session's row exists, it is the record of the
//! session's creation, so that a sign-in writes nothing more. The sweep turns it into a record of the second part, with the same
//! id. A session that is swept while the log is read may appear twice, which is noticed, or not at all.

use std::collections::BTreeMap;
use std::collections::VecDeque;

use serde_json::Value;
use uuid::Uuid;

use super::projects::CLOCK_SKEW_MAX;
use crate::store;
use crate::store::EventKind;
use crate::store::EventRecord;
use crate::store::KeyKind;
use crate::store::RecordOrder;
use crate::store::RecordQuery;
use crate::store::RevocationRecord;
use crate::store::Store;
use sessiond_core::clock;
use sessiond_core::clock::Timestamp;
use sessiond_core::id::KeyId;
use sessiond_core::id::ProjectId;
use sessiond_core::id::SessionId;
use sessiond_core::id::UserId;
use sessiond_core::session::EndedBy;
use sessiond_core::session::RevokeReason;

/// How many records of a part one statement reads: a few milliseconds of work, and the most that is held in memory of each part.
const PAGE_ROWS: usize = 1_000;

/// An entry of the audit log, of whatever part.
#[derive(Clone, Debug, PartialEq)]
pub struct AuditEntry {
    /// Its id. Ids ascend in time order.
    pub id: Uuid,
    /// When it happened.
    pub at: Timestamp,
    /// What happened: the reason of a revocation, or the kind of another event.
    pub kind: &'static str,
    /// Who did it.
    pub by: EndedBy,
    /// The session concerned.
    pub session: Option<SessionId>,
    /// The one session that was not revoked with the others.
    pub spared: Option<SessionId>,
    /// The key concerned.
    pub key: Option<(KeyKind, KeyId)>,
    /// The user concerned; `None` once erased.
    pub user: Option<String>,
    /// Who acts as the user.
    pub impersonator: Option<String>,
    /// The client's address, if known, until addresses are swept.
    pub ip: Option<String>,
    /// What belongs to the kind alone.
    pub details: Option<Value>,
    /// Whether it revokes all sessions of the user, or of the project if it names no user.
    pub is_for_all: bool,
}

/// Which entries to read. An entry must match everything that is given.
#[derive(Clone, Debug)]
pub struct AuditFilter {
    /// The project.
    pub project: ProjectId,
    /// Only entries about this user.
    pub user: Option<UserId>,
    /// Only entries about this session.
    pub session: Option<SessionId>,
    /// Only entries of these kinds; of all if empty.
    pub kinds: Vec<&'static str>,
    /// Only entries of this actor.
    pub actor: Option<AuditActor>,
    /// Only entries about this key, or of the service that has it.
    pub key: Option<KeyId>,
    /// Only entries from this moment on.
    pub since: Option<Timestamp>,
    /// Only entries before this moment.
    pub until: Option<Timestamp>,
}

impl AuditFilter {
    /// All entries of a project.
    pub const fn all(project: ProjectId) -> Self {
        let (user, session, actor, key) = (None, None, None, None);
        Self { project, user, session, kinds: vec![], actor, key, since: None, until: None }
    }

    fn admits(&self, entry: &AuditEntry) -> bool {
        let admits_session = |session| entry.session == Some(session) || entry.spared == Some(session);
        let admits_key = |key: KeyId| {
            entry.key.is_some_and(|(_, id)| id == key) || matches!(entry.by, EndedBy::Service(id) if id == key)
        };
        // Ids have the time to the millisecond only.
        self.since.is_none_or(|since| since <= entry.at)
            && self.until.is_none_or(|until| entry.at < until)
            && (self.kinds.is_empty() || self.kinds.contains(&entry.kind))
            && self.session.is_none_or(admits_session)
            && self.key.is_none_or(admits_key)
            && self.actor.is_none_or(|actor| actor.is(entry.by))
    }
}

/// An actor to filter by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AuditActor {
    /// Of this kind: a name of [`EndedBy::NAMES`].
    Kind(&'static str),
    /// The session of a user, or the server key of a service.
    Id(Uuid),
}

impl AuditActor {
    fn is(self, by: EndedBy) -> bool {
        match self {
            Self::Kind(name) => name == by.as_str(),
            Self::Id(id) => by.id() == Some(id),
        }
    }
}

/// The names of all kinds of entries, sorted.
pub fn audit_kinds() -> Vec<&'static str> {
    let mut names: Vec<_> = RevokeReason::ALL.map(RevokeReason::as_str).into_iter().chain(EventKind::names()).collect();
    names.sort_unstable();
    names.dedup();
    names
}

/// Reads entries one by one, in bounded memory.
pub struct AuditLog {
    store: Store,
    filter: AuditFilter,
    order: RecordOrder,
    parts: [Part; 3],
    last: Option<Uuid>,
}

/// The unread rest of a part.
struct Part {
    source: Source,
    /// The bounds of the ids that were not read, both exclusive.
    after: Uuid,
    before: Uuid,
    /// Entries that were read and not returned.
    read: VecDeque<AuditEntry>,
    is_done: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Source {
    Revocations,
    Events,
    Sessions,
}

impl AuditLog {
    /// Prepares to read, from the oldest or from the newest entry that matches.
    pub fn new(store: Store, filter: AuditFilter, order: RecordOrder) -> Self {
        let since = [filter.since, filter.session.and_then(created_after)].into_iter().flatten().max();
        let after = since.map_or(Uuid::nil(), |since| before(clock::record_id_floor(since)));
        let until = filter.until.map(|until| clock::record_id_floor(until + std::time::Duration::from_millis(1)));
        let until = until.unwrap_or(Uuid::max());
        let kinds = [
            (Source::Revocations, RevokeReason::ALL.map(RevokeReason::as_str).to_vec()),
            (Source::Events, EventKind::names().collect()),
            (Source::Sessions, vec![SESSION_CREATED]),
        ];
        let parts = kinds.map(|(source, kinds)| {
            let is_done = !filter.kinds.is_empty() && !filter.kinds.iter().any(|kind| kinds.contains(kind));
            let mut part = Part { source, after, before: until, read: VecDeque::new(), is_done };
            if let (Source::Sessions, Some(session)) = (source, filter.session) {
                part.after = part.after.max(before(session.as_uuid()));
                part.before = part.before.min(Uuid::from_u128(session.as_uuid().as_u128().saturating_add(1)));
            }
            part
        });
        Self { store, filter, order, parts, last: None }
    }

    /// Returns the next entry; `None` at the end.
    ///
    /// # Errors
    ///
    /// Fails if the database is unavailable.
    pub async fn next(&mut self) -> Result<Option<AuditEntry>, store::Error> {
        loop {
            let mut heads = BTreeMap::new();
            for (at, part) in self.parts.iter_mut().enumerate() {
                part.fill(&self.store, &self.filter, self.order).await?;
                heads.extend(part.read.front().map(|head| ((head.id, at), at)));
            }
            let next = match self.order {
                RecordOrder::OldestFirst => heads.first_key_value(),
                RecordOrder::NewestFirst => heads.last_key_value(),
            };
            let Some(entry) = next.and_then(|(_, at)| self.parts[*at].read.pop_front()) else { return Ok(None) };
            if self.last.replace(entry.id) != Some(entry.id) {
                return Ok(Some(entry));
            }
        }
    }
}

impl Part {
    /// Reads pages until an entry matches, or the end is reached.
    async fn fill(&mut self, store: &Store, filter: &AuditFilter, order: RecordOrder) -> Result<(), store::Error> {
        while self.read.is_empty() && !self.is_done {
            let (project, user) = (filter.project.clone(), filter.user.clone());
            let (after, before) = (self.after, self.before);
            let asked = RecordQuery { project, user, after, before, order, rows_max: PAGE_ROWS };
            let (entries, last) = self.source.page(store, asked).await?;
            self.read.extend(entries.into_iter().filter(|entry| filter.admits(entry)));
            match (last, order) {
                (None, _) => self.is_done = true,
                (Some(last), RecordOrder::OldestFirst) => self.after = last,
                (Some(last), RecordOrder::NewestFirst) => self.before = last,
            }
        }
        Ok(())
    }
}

impl Source {
    /// Reads a page. Also returns the id of its last record, if there may be more.
    async fn page(self, store: &Store, asked: RecordQuery) -> Result<(Vec<AuditEntry>, Option<Uuid>), store::Error> {
        let rows_max = asked.rows_max;
        let (entries, last): (Vec<AuditEntry>, _) = match self {
            Self::Revocations => (store.revocations(asked).await?.into_iter().map(AuditEntry::from).collect(), None),
            Self::Events => (store.events(asked).await?.into_iter().map(AuditEntry::from).collect(), None),
            Self::Sessions => {
                let (records, last) = store.sessions_created(asked).await?;
                return Ok((records.into_iter().map(AuditEntry::from).collect(), last));
            }
        };
        let full = entries.last().filter(|_| entries.len() >= rows_max).map(|entry| entry.id);
        Ok((entries, full.or(last)))
    }
}

const SESSION_CREATED: &str = "SESSION_CREATED";

impl From<RevocationRecord> for AuditEntry {
    fn from(record: RevocationRecord) -> Self {
        let RevocationRecord { id, at, reason, session, spared, key, key_kind, user, by, ip } = record;
        let (key, kind) = (key_kind.zip(key), reason.as_str());
        let is_for_all = session.is_none() && key.is_none();
        Self { id, at, kind, by, session, spared, key, user, impersonator: None, ip, details: None, is_for_all }
    }
}

impl From<EventRecord> for AuditEntry {
    fn from(record: EventRecord) -> Self {
        let EventRecord { id, at, kind, by, ip, details } = record;
        Self {
            id,
            at,
            kind: kind.as_str(),
            by,
            session: kind.session().map(|(id, _)| id),
            spared: None,
            key: kind.key(),
            user: kind.session().and_then(|(_, user)| user.cloned()),
            impersonator: kind.impersonator().cloned(),
            ip,
            details,
            is_for_all: false,
        }
    }
}

/// A moment before anything about the session was recorded: its id has the time of its creation.
fn created_after(session: SessionId) -> Option<Timestamp> {
    let (seconds, nanos) = session.as_uuid().get_timestamp()?.to_unix();
    let micros = i64::try_from(seconds).ok()?.checked_mul(1_000_000)?.checked_add(i64::from(nanos / 1_000))?;
    // Another server's clock may be behind.
    Some(Timestamp::from_micros(micros) - CLOCK_SKEW_MAX)
}

/// The id before another.
const fn before(id: Uuid) -> Uuid {
    Uuid::from_u128(id.as_u128().saturating_sub(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kinds_are_named_once_and_an_id_bounds_its_millisecond() {
        let kinds = audit_kinds();
        assert!(kinds.contains(&SESSION_CREATED) && kinds.contains(&"SIGNED_OUT"), "{kinds:?}");
        assert!(kinds.is_sorted_by(|one, other| one < other), "{kinds:?}");

        let at = Timestamp::from_micros(1_700_000_000_123_456);
        let floor = clock::record_id_floor(at);
        assert!(before(floor) < floor && floor < clock::new_record_id(at));
        assert!(clock::new_record_id(Timestamp::from_micros(1_700_000_000_122_999)) < floor);
    }
}
