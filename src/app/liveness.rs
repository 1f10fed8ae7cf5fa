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
use sessiond_core::token::verified::VerifiedToken;

impl App {
    /// Returns whether the session of each token is live, in the tokens' order. Marks the live ones as used.
    ///
    /// The feed answers while it is fresh. While it is no longer fresh but still trusted, the rows answer; after that the call
    /// fails. Feed and rows know at once what this replica has revoked; of another replica's revocations the feed learns some
    /// milliseconds later.
    ///
    /// # Errors
    ///
    /// As [`App::check_trusted`]; or if the feed is not fresh and the database operation fails.
    pub(super) async fn are_live(
        &self,
        project: &ProjectId,
        tokens: &[VerifiedToken],
        now: Timestamp,
    ) -> Result<Vec<bool>, Error> {
        let live: Vec<bool> = if self.feed.is_fresh() {
            // A token never outlives its session, and these have not expired: only a revocation can have ended the session.
            tokens.iter().map(|token| !self.feed.has_ended(&Bearer::from(token))).collect()
        } else {
            self.check_trusted()?;
            let rows = self.live_rows(project, tokens, now).await?;
            self.check_trusted()?;
            tokens.iter().map(|token| rows.contains(&token.session())).collect()
        };
        for (token, _) in tokens.iter().zip(&live).filter(|(_, is_live)| **is_live) {
            // The session was in use when the token was issued.
            self.usage.note(project, token.session(), token.issued_at(), now);
        }
        Ok(live)
    }

    /// Fails if what the database returned may be out of date. Called after the query, so that the answer is at most
    /// `--staleness-max` old.
    ///
    /// # Errors
    ///
    /// [`store::Error::Unavailable`] if the feed is too old.
    pub(super) fn check_trusted(&self) -> Result<(), Error> {
        if self.feed.is_trusted() { Ok(()) } else { Err(store::Error::stale().into()) }
    }

    /// The tokens' sessions that are live according to their rows.
    async fn live_rows(
        &self,
        project: &ProjectId,
        tokens: &[VerifiedToken],
        now: Timestamp,
    ) -> Result<HashSet<SessionId>, Error> {
        // Without duplicates: a request may name the same session several times.
        let ids: BTreeSet<SessionId> = tokens.iter().map(VerifiedToken::session).collect();
        if ids.is_empty() {
            return Ok(HashSet::new());
        }
        let found = self.store.summaries_find(project.clone(), ids.into_iter().collect()).await?;
        let live = found.into_iter().filter(|(summary, present)| summary.lifetime.is_live(now, *present));
        Ok(live.map(|(summary, _)| summary.id).collect())
    }
}
