//! Whether the sessions of verified access tokens are live.

use std::collections::BTreeSet;
use std::collections::HashSet;

use super::App;
use super::Error;
use crate::store;
use sessiond_core::clock::Timestamp;
use sessiond_core::id::ProjectId;
use sessiond_core::id::SessionId;
use sessiond_core::session::revoked::Bearer;
use sessiond_core::token::verifier::VerifiedToken;

impl App {
    /// Whether the session of each token is live, in the tokens' order. Marks the live ones as used.
    ///
    /// The feed answers, as long as it knows its news to be young; a little later the rows do, and then nobody. Feed and rows
    /// know of what this replica has ended; of what another has, the feed some milliseconds later.
    ///
    /// # Errors
    ///
    /// The store's, where the feed does not answer; as [`App::check_trusted`].
    pub(super) async fn are_live(
        &self,
        project: &ProjectId,
        tokens: &[VerifiedToken],
        now: Timestamp,
    ) -> Result<Vec<bool>, Error> {
        let live: Vec<bool> = if self.feed.is_fresh() {
            // A token never outlives its session, and these have not run out: what is left is what ends before its time.
            tokens.iter().map(|token| !self.feed.has_ended(&Bearer::from(token))).collect()
        } else {
            self.check_trusted()?;
            let rows = self.live_rows(project, tokens, now).await?;
            self.check_trusted()?;
            tokens.iter().map(|token| rows.contains(&token.session())).collect()
        };
        for (token, _) in tokens.iter().zip(&live).filter(|(_, is_live)| **is_live) {
            // Its session was in use when it was issued.
            self.usage.note(project, token.session(), token.issued_at(), now);
        }
        Ok(live)
    }

    /// Refuses to answer by what the database says when that may be out of date: to be called once it has answered, so that
    /// the answer is at most `--staleness-max` old.
    ///
    /// # Errors
    ///
    /// [`store::Error::Unavailable`], when the feed is too old.
    pub(super) fn check_trusted(&self) -> Result<(), Error> {
        if self.feed.is_trusted() { Ok(()) } else { Err(store::Error::stale().into()) }
    }

    /// Those of the tokens' sessions whose rows say that they live.
    async fn live_rows(
        &self,
        project: &ProjectId,
        tokens: &[VerifiedToken],
        now: Timestamp,
    ) -> Result<HashSet<SessionId>, Error> {
        // Each once: a service may ask about the same session several times over.
        let ids: BTreeSet<SessionId> = tokens.iter().map(VerifiedToken::session).collect();
        if ids.is_empty() {
            return Ok(HashSet::new());
        }
        let found = self.store.summaries_find(project.clone(), ids.into_iter().collect()).await?;
        let live = found.into_iter().filter(|(summary, present)| summary.lifetime.is_live(now, *present));
        Ok(live.map(|(summary, _)| summary.id).collect())
    }
}
