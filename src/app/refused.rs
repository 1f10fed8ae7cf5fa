//! Counts refused attempts with genuine-looking credentials for the audit: in memory first, then as one record a minute for each
//! project and reason. So nobody can fill the table. A crash loses the last minute.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::time::Duration;

use serde_json::json;

use super::App;
use super::Error;
use crate::store::AuditEvent;
use crate::store::EventKind;
use crate::store::RefusedAttempt;
use crate::store::RefusedCredential;
use sessiond_core::clock::Timestamp;
use sessiond_core::id::ProjectId;
use sessiond_core::session::EndedBy;

/// How often the counts are written.
pub(super) const FLUSH_INTERVAL: Duration = Duration::from_secs(60);

/// The most counts between two flushes: about 1 MB. Further ones are not recorded.
const TALLIES_MAX: usize = 8_192;

/// How many records one statement writes.
const RECORDS_AT_ONCE: usize = 1_000;

/// Counts of refused attempts. Cheap to clone; clones share state.
#[derive(Clone, Default)]
pub(super) struct RefusedAttempts(Arc<Mutex<Tallies>>);

type Tallies = HashMap<(ProjectId, RefusedAttempt), Tally>;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Tally {
    count: u64,
    first_at: Timestamp,
    last_at: Timestamp,
    /// The credential of the last attempt.
    credential: RefusedCredential,
}

impl RefusedAttempts {
    /// Counts an attempt. `project` is the credential's, which exists: nobody can add projects by making them up.
    fn note(&self, project: &ProjectId, why: RefusedAttempt, credential: RefusedCredential, now: Timestamp) {
        let tally = Tally { count: 1, first_at: now, last_at: now, credential };
        add(&mut self.tallies(), (project.clone(), why), tally);
    }

    fn take(&self) -> Tallies {
        std::mem::take(&mut *self.tallies())
    }

    /// Returns counts that could not be written.
    fn restore(&self, unwritten: Tallies) {
        let mut tallies = self.tallies();
        for (key, tally) in unwritten {
            add(&mut tallies, key, tally);
        }
    }

    fn tallies(&self) -> MutexGuard<'_, Tallies> {
        self.0.lock().expect("no one panics while holding it")
    }
}

fn add(tallies: &mut Tallies, key: (ProjectId, RefusedAttempt), tally: Tally) {
    let is_full = tallies.len() >= TALLIES_MAX;
    match tallies.entry(key) {
        Entry::Occupied(mut entry) => {
            let present = entry.get_mut();
            let newest = if tally.last_at >= present.last_at { &tally } else { &*present };
            *present = Tally {
                count: present.count.saturating_add(tally.count),
                first_at: present.first_at.min(tally.first_at),
                last_at: newest.last_at,
                credential: newest.credential,
            };
        }
        Entry::Vacant(entry) if !is_full => {
            entry.insert(tally);
        }
        Entry::Vacant(_) => {}
    }
}

impl App {
    /// Counts a refused attempt with a genuine-looking credential of a project.
    pub(super) fn note_refused(&self, project: &ProjectId, why: RefusedAttempt, credential: RefusedCredential) {
        self.refused.note(project, why, credential, self.clock.now());
    }

    /// Writes the counts of refused attempts to the audit.
    ///
    /// # Errors
    ///
    /// Fails if the database operation fails. The counts are kept then, and written by the next call.
    pub async fn flush_refused(&self) -> Result<(), Error> {
        let mut tallies: Vec<_> = self.refused.take().into_iter().collect();
        while !tallies.is_empty() {
            let rest = tallies.split_off(tallies.len().min(RECORDS_AT_ONCE));
            let events = tallies.iter().map(|((project, why), tally)| event(project, *why, tally)).collect();
            if let Err(error) = self.store.events_insert(events).await {
                self.refused.restore(tallies.into_iter().chain(rest).collect());
                return Err(error.into());
            }
            tallies = rest;
        }
        Ok(())
    }
}

fn event(project: &ProjectId, why: RefusedAttempt, tally: &Tally) -> AuditEvent {
    AuditEvent {
        project: project.clone(),
        kind: EventKind::Refused(why, tally.credential),
        at: tally.first_at,
        by: EndedBy::Sessiond,
        ip: None,
        details: Some(json!({ "count": tally.count, "last_at": tally.last_at.to_string() })),
    }
}

#[cfg(test)]
mod tests {
    use sessiond_core::id::KeyId;
    use uuid::Uuid;

    use super::*;

    fn key(number: u128) -> RefusedCredential {
        RefusedCredential::ServerKey(KeyId::from_uuid(Uuid::from_u128(number)))
    }

    fn project(name: &str) -> ProjectId {
        ProjectId::parse(name).expect("a name")
    }

    #[test]
    fn attempts_are_counted_by_project_and_reason_and_the_last_credential_is_kept() {
        let (refused, at) = (RefusedAttempts::default(), Timestamp::from_seconds);
        for (second, name, why, number) in [
            (1, "shop", RefusedAttempt::ServerKeyRevoked, 1),
            (3, "shop", RefusedAttempt::ServerKeyRevoked, 2),
            (2, "shop", RefusedAttempt::RateLimited, 3),
            (2, "blog", RefusedAttempt::ServerKeyRevoked, 4),
        ] {
            refused.note(&project(name), why, key(number), at(second));
        }
        let taken = refused.take();
        let both = Tally { count: 2, first_at: at(1), last_at: at(3), credential: key(2) };
        assert_eq!((taken.len(), taken[&(project("shop"), RefusedAttempt::ServerKeyRevoked)]), (3, both));
        assert!(refused.take().is_empty());

        refused.note(&project("shop"), RefusedAttempt::ServerKeyRevoked, key(5), at(9));
        refused.restore(taken);
        let all = Tally { count: 3, first_at: at(1), last_at: at(9), credential: key(5) };
        assert_eq!(refused.take()[&(project("shop"), RefusedAttempt::ServerKeyRevoked)], all);
    }

    #[test]
    fn memory_is_bounded() {
        let refused = RefusedAttempts::default();
        for number in 0..TALLIES_MAX + 10 {
            let name = project(&format!("p{number}"));
            refused.note(&name, RefusedAttempt::RateLimited, key(1), Timestamp::from_seconds(1));
        }
        refused.note(&project("p0"), RefusedAttempt::RateLimited, key(1), Timestamp::from_seconds(2));
        let taken = refused.take();
        assert_eq!((taken.len(), taken[&(project("p0"), RefusedAttempt::RateLimited)].count), (TALLIES_MAX, 2));
    }
}
