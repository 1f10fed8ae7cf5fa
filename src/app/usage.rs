//! When sessions were last used, beyond their refreshes: noted in memory, and written down together, at most once a minute
//! for each. A crash loses a minute of it, and nothing else: no rule goes by it but the choice of whom to evict.

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

/// How often the notes are written down.
pub(super) const FLUSH_INTERVAL: Duration = Duration::from_secs(5);

/// A use this soon after the last one that was written down is not worth a write.
const COALESCE: Duration = Duration::from_secs(60);

/// The most sessions that are noted between two writings; further ones go unnoted.
const NOTES_MAX: usize = 10_000;

/// The notes. Clones are one and the same.
#[derive(Clone, Default)]
pub(super) struct Usage(Arc<Mutex<Notes>>);

#[derive(Default)]
struct Notes {
    /// What is to be written down.
    due: HashMap<(ProjectId, SessionId), Timestamp>,
    /// What was written down within the last minute.
    written: HashMap<(ProjectId, SessionId), Timestamp>,
}

impl Usage {
    /// Notes that a session is used now, unless that was written down within the last minute: by what is known of its last
    /// use, or here.
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

    /// What is to be written down, which from now on counts as written.
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
    /// Writes down which sessions were used since the last time.
    ///
    /// # Errors
    ///
    /// The store's. What was noted is lost then, which is what may become of it anyway.
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
