//! Whether verified access tokens are still good: their sessions live, and the tokens not superseded.

use std::collections::BTreeSet;
use std::collections::HashMap;

use super::App;
use super::Error;
use crate::store;
use sessiond_core::clock::Timestamp;
use sessiond_core::id::ProjectId;
use sessiond_core::id::SessionId;
use sessiond_core::session::revoked::Bearer;
use sessiond_core::token::verified::VerifiedToken;

/// Whether a verified access token is still good.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Standing {
    /// It is.
    Good,
    /// Its session is live, but a change of its claims superseded the token.
    Superseded,
    /// Its session has ended.
    Ended,
}

impl App {
    /// Returns the standing of each token, in the tokens' order. Marks the sessions of good ones as used.
    ///
    /// The feed answers while it is fresh. While it is no longer fresh but still trusted, the rows answer; after that the call
    /// fails. Feed and rows know at once what this replica has revoked; of another replica's revocations the feed learns some
    /// milliseconds later.
    ///
    /// # Errors
    ///
    /// As [`App::check_trusted`]; or if the feed is not fresh and the database operation fails.
    pub(super) async fn standings(
        &self,
        project: &ProjectId,
        tokens: &[VerifiedToken],
        now: Timestamp,
    ) -> Result<Vec<Standing>, Error> {
        let standings: Vec<Standing> = if self.feed.is_fresh() {
            // A token never outlives its session, and these have not expired: only a revocation can have ended the session.
            let standing = |token: &VerifiedToken| match self.feed.has_ended(&Bearer::from(token)) {
                true => Standing::Ended,
                false if self.feed.has_superseded(token.session(), token.session_epoch()) => Standing::Superseded,
                false => Standing::Good,
            };
            tokens.iter().map(standing).collect()
        } else {
            self.check_trusted()?;
            let rows = self.live_rows(project, tokens, now).await?;
            self.check_trusted()?;
            let standing = |token: &VerifiedToken| match rows.get(&token.session()) {
                None => Standing::Ended,
                Some(own_epoch) if token.session_epoch() < *own_epoch => Standing::Superseded,
                Some(_) => Standing::Good,
            };
            tokens.iter().map(standing).collect()
        };
        for (token, _) in tokens.iter().zip(&standings).filter(|(_, standing)| **standing == Standing::Good) {
            // The session was in use when the token was issued.
            self.usage.note(project, token.session(), token.issued_at(), now);
        }
        Ok(standings)
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

    /// The tokens' sessions that are live according to their rows, each with its own epoch.
    async fn live_rows(
        &self,
        project: &ProjectId,
        tokens: &[VerifiedToken],
        now: Timestamp,
    ) -> Result<HashMap<SessionId, i64>, Error> {
        // Without duplicates: a request may name the same session several times.
        let ids: BTreeSet<SessionId> = tokens.iter().map(VerifiedToken::session).collect();
        if ids.is_empty() {
            return Ok(HashMap::new());
        }
        let found = self.store.summaries_find(project.clone(), ids.into_iter().collect()).await?;
        let live = found.into_iter().filter(|(summary, present)| summary.lifetime.is_live(now, *present));
        Ok(live.map(|(summary, _)| (summary.id, summary.own_epoch)).collect())
    }
}
