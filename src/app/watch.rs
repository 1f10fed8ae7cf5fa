//! Subscribes callers to revocations.

use std::time::Duration;

use super::App;
use super::Caller;
use super::Error;
use super::credentials::VerifiedCaller;
use crate::feed::SubscribeError;
use crate::feed::Subscription;
use crate::feed::SubscriptionFilter;
use sessiond_core::session::Refusal;
use sessiond_core::session::revoked::Bearer;

/// How long a caller should wait before it retries if there are too many subscribers.
const RETRY_AFTER: Duration = Duration::from_secs(5);

impl App {
    /// Subscribes to revocations: a service to its whole project, a user to their own sessions.
    ///
    /// # Errors
    ///
    /// Fails if the caller or the cursor is refused; with [`Refusal::RateLimited`] if there are too many subscribers; with
    /// [`Error::FeedInterrupted`] while the feed has not been read yet; or if the database operation fails.
    pub async fn watch_revocations(&self, caller: Caller, cursor: &str) -> Result<Subscription, Error> {
        let filter = match self.principal(caller).await? {
            VerifiedCaller::Service(service) => {
                SubscriptionFilter::Project { project: service.project, key: service.key }
            }
            VerifiedCaller::User(token) => {
                let session = self.own_session(&token).await?;
                SubscriptionFilter::User {
                    project: token.project().clone(),
                    user: token.user().clone(),
                    session: session.id,
                    epoch: Bearer::from(&token).epoch,
                    key: token.key(),
                    token_ttl: token.expires_at().since(self.clock.now()),
                }
            }
        };
        let cursor = (!cursor.is_empty()).then_some(cursor);
        self.feed.subscribe(filter, cursor).map_err(|error| match error {
            SubscribeError::MalformedCursor => {
                Refusal::invalid("cursor", "must be one that this stream has returned").into()
            }
            SubscribeError::TooMany => Refusal::RateLimited { retry_after: RETRY_AFTER }.into(),
            SubscribeError::NotReady => Error::FeedInterrupted,
        })
    }
}
