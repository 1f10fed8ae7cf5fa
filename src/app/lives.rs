//! Whether the sessions of access tokens live: all that a genuine token leaves open.

use std::collections::BTreeSet;
use std::collections::HashSet;

use super::App;
use super::Error;
use super::judge::Genuine;
use crate::clock::Timestamp;
use crate::id::ProjectId;
use crate::id::SessionId;

impl App {
    /// Whether each token's session lives, in the tokens' order. Notes that those which do are in use.
    ///
    /// # Errors
    ///
    /// The store's.
    pub(super) async fn lives(
        &self,
        project: &ProjectId,
        tokens: &[Genuine],
        now: Timestamp,
    ) -> Result<Vec<bool>, Error> {
        // Each once: a service may ask about the same session several times over.
        let ids: BTreeSet<SessionId> = tokens.iter().map(|token| token.session).collect();
        let found = match ids.is_empty() {
            true => vec![],
            false => self.store.outlines_find(project.clone(), ids.into_iter().collect()).await?,
        };
        let mut live = HashSet::new();
        for (outline, present) in found {
            if outline.lifetime.is_live(now, present) {
                self.usage.note(project, outline.occupant, now);
                live.insert(outline.occupant.session);
            }
        }
        Ok(tokens.iter().map(|token| live.contains(&token.session)).collect())
    }
}
