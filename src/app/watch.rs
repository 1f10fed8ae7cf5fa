//! Following what ends.

use std::time::Duration;

use super::App;
use super::Caller;
use super::Error;
use super::credentials::Principal;
use crate::feed::Filter;
use crate::feed::Refused;
use crate::feed::Subscription;
use crate::session::Refusal;
use crate::session::refusal::Violation;

/// After how long to try again when too many are listening.
const RETRY_AFTER: Duration = Duration::from_secs(5);

impl App {
    /// Follows what ends: all of a service's project, or a user's own sessions.
    ///
    /// # Errors
    ///
    /// A refusal of the caller or of the cursor; [`Refusal::RateLimited`] when too many are listening;
    /// [`Error::FeedInterrupted`] when nothing is known yet; the store's.
    pub async fn watch_revocations(&self, caller: Caller, cursor: &str) -> Result<Subscription, Error> {
        let filter = match self.principal(caller).await? {
            Principal::Service(service) => Filter::Project { project: service.project, key: service.key },
            Principal::User(signed_in) => {
                let session = self.own_session(&signed_in).await?;
                Filter::User {
                    project: signed_in.project,
                    user: signed_in.user,
                    session: session.id,
                    epoch: signed_in.epoch,
                    key: signed_in.key,
                    token_ttl: signed_in.expires_at.since(self.clock.now()),
                }
            }
        };
        let cursor = (!cursor.is_empty()).then_some(cursor);
        self.feed.subscribe(filter, cursor).map_err(|refused| match refused {
            Refused::MalformedCursor => Violation::refuse("cursor", "must be one that this stream has given").into(),
            Refused::TooMany => Refusal::RateLimited { retry_after: RETRY_AFTER }.into(),
            Refused::NotReady => Error::FeedInterrupted,
        })
    }
}
