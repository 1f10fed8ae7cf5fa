//! Records when sessions were last used between refreshes: in memory first, then in batches, at most once a minute for each.
//! A crash loses a minute of that and nothing else: only the choice of which session to evict depends on it.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::time::Duration;

use super::App;
use super::Error;
use crate::store::SessionUse;
use sessiond_core::clock::Timestamp;
use sessiond_core::id::ProjectId;
use sessiond_core::id::SessionId;

/// How often the recorded uses are written to the database.
pub(super) const FLUSH_INTERVAL: Duration = Duration::from_secs(5);

/// A use this soon after the last written one is not written.
const COALESCE: Duration = Duration::from_secs(60);

/// The most sessions that are recorded between two flushes; further ones are not recorded.
const NOTES_MAX: usize = 10_000;

/// Recorded uses of sessions. Cheap to clone; clones share state.
#[derive(Clone, Default)]
pub(super) struct Usage(Arc<Mutex<Notes>>);

#[derive(Default)]
struct Notes {
    /// What the next flush writes.
    due: HashMap<(ProjectId, SessionId), Timestamp>,
    /// What was written within the last minute.
    written: HashMap<(ProjectId, SessionId), Timestamp>,
}

impl Usage {
    /// Records that a session is used now, unless a use was written within the last minute, according to `last_used_at` or to
    /// this record.
    pub(super) fn note(&self, project: &ProjectId, session: SessionId, last_used_at: Timestamp, now: Timestamp) {
        if now < last_used_at + COALESCE {
            return;
        }
        let mut notes = self.notes();
        let key = (project.clone(), session);
        let is_written = notes.written.get(&key).is_some_and(|at| now < *at + COALESCE);
        if !is_written && (notes.due.len() < NOTES_MAX || notes.due.contains_key(&key)) {
            notes.due.insert(key, now);
        }
    }

    /// Takes what is due. It counts as written from now on.
    fn take(&self, now: Timestamp) -> HashMap<(ProjectId, SessionId), Timestamp> {
        let mut notes = self.notes();
        let due = std::mem::take(&mut notes.due);
        notes.written.retain(|_, at| now < *at + COALESCE);
        notes.written.extend(due.clone());
        due
    }

    fn notes(&self) -> MutexGuard<'_, Notes> {
        self.0.lock().expect("no one panics while holding it")
    }
}

impl App {
    /// Writes which sessions were used since the last flush.
    ///
    /// # Errors
    ///
    /// Fails if the database operation fails. The recorded uses are lost then, as they are in a crash.
    pub async fn flush_usage(&self) -> Result<(), Error> {
        let notes = self.usage.take(self.clock.now());
        let used: Vec<SessionUse<'_>> =
            notes.iter().map(|((project, session), at)| SessionUse { project, session: *session, at: *at }).collect();
        for some in used.chunks(1_000) {
            self.store.sessions_touch(some).await?;
        }
        Ok(())
    }
}
