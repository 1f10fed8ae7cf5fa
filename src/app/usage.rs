//! When sessions were last used, beyond their refreshes: noted in memory, and written down together, at most once a minute
//! for each. A crash loses a minute of it, and nothing else: no rule goes by it but the choice of whom to evict.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::Mutex;
use std::time::Duration;

use super::App;
use super::Error;
use crate::clock::Timestamp;
use crate::id::ProjectId;
use crate::id::SessionId;
use crate::session::limit::Occupant;
use crate::store::Use;

/// How often the notes are written down.
pub const FLUSH_INTERVAL: Duration = Duration::from_secs(5);

/// A use this soon after the last one that was written down is not worth a write.
const COALESCE: Duration = Duration::from_secs(60);

/// The most sessions that are noted between two writings; further ones go unnoted.
const NOTES_MAX: usize = 10_000;

/// The notes. Clones are one and the same.
#[derive(Clone, Default)]
pub(super) struct Usage(Arc<Mutex<HashMap<(ProjectId, SessionId), Timestamp>>>);

impl Usage {
    /// Notes that a session is used now, unless that was written down within the last minute.
    pub(super) fn note(&self, project: &ProjectId, session: Occupant, now: Timestamp) {
        if now < session.last_used_at + COALESCE {
            return;
        }
        let mut notes = self.0.lock().expect("no one panics while holding it");
        let key = (project.clone(), session.session);
        if notes.len() < NOTES_MAX || notes.contains_key(&key) {
            notes.insert(key, now);
        }
    }

    fn take(&self) -> HashMap<(ProjectId, SessionId), Timestamp> {
        std::mem::take(&mut self.0.lock().expect("no one panics while holding it"))
    }
}

impl App {
    /// Writes down which sessions were used since the last time.
    ///
    /// # Errors
    ///
    /// The store's. What was noted is lost then, which is what may become of it anyway.
    pub async fn flush_usage(&self) -> Result<(), Error> {
        let notes = self.usage.take();
        let used: Vec<Use<'_>> =
            notes.iter().map(|((project, session), at)| Use { project, session: *session, at: *at }).collect();
        for some in used.chunks(1_000) {
            self.store.sessions_touch(some).await?;
        }
        Ok(())
    }
}
