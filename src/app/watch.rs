//! Subscribes callers to revocations.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::Mutex;
use std::time::Duration;

use super::App;
use super::Caller;
use super::Error;
use super::credentials::Service;
use super::credentials::VerifiedCaller;
use crate::feed::SubscribeError;
use crate::feed::Subscription;
use crate::feed::SubscriptionFilter;
use crate::store::Role;
use sessiond_core::id::KeyId;
use sessiond_core::session::Refusal;
use sessiond_core::session::revoked::Bearer;

/// How long a caller should wait before it retries if there are too many subscribers.
const RETRY_AFTER: Duration = Duration::from_secs(5);

impl App {
    /// Subscribes to revocations: a service to its whole project, a user to their own sessions. `entries_max` is how many a
    /// service can hold. Returns the role of the service's key too.
    ///
    /// # Errors
    ///
    /// Fails if the caller or the cursor is refused; with [`Refusal::RateLimited`] if there are too many subscribers, with
    /// [`Refusal::TooManyEntries`] if there are more revocations than the service can hold; with [`Error::FeedInterrupted`]
    /// while the feed has not been read yet; or if the database operation fails.
    pub async fn watch_revocations(
        &self,
        caller: Caller,
        cursor: &str,
        entries_max: Option<usize>,
    ) -> Result<(Subscription, Option<Role>), Error> {
        let now = self.clock.now();
        let (filter, role) = match self.principal(caller, Role::Verifier).await? {
            VerifiedCaller::Service(Service { project, privileges, key }) => {
                self.strong_keys.note(key, privileges.role);
                let key_ttl = privileges.expires_at.map(|expires_at| expires_at.since(now));
                let filter = SubscriptionFilter::Project { project, key, key_ttl, entries_max };
                (filter, Some(privileges.role))
            }
            VerifiedCaller::User(token) => {
                let session = self.own_session(&token).await?;
                let filter = SubscriptionFilter::User {
                    project: token.project().clone(),
                    user: token.user().clone(),
                    session: session.id,
                    epoch: Bearer::from(&token).epoch,
                    key: token.key(),
                    token_ttl: token.expires_at().since(self.clock.now()),
                };
                (filter, None)
            }
        };
        let cursor = (!cursor.is_empty()).then_some(cursor);
        let subscription = self.feed.subscribe(filter, cursor).map_err(|error| match error {
            SubscribeError::MalformedCursor => {
                Refusal::invalid("cursor", "must be one that this stream has returned").into()
            }
            SubscribeError::TooMany => Refusal::RateLimited { retry_after: RETRY_AFTER }.into(),
            SubscribeError::TooManyEntries { entries, entries_max } => {
                Refusal::TooManyEntries { entries, entries_max }.into()
            }
            SubscribeError::NotReady => Error::FeedInterrupted,
        })?;
        Ok((subscription, role))
    }
}

/// The most keys that are remembered: beyond, no more are logged.
const STRONG_KEYS_MAX: usize = 1_024;

/// The keys of subscribers that may do more than follow the feed. Each is logged once. Cheap to clone; clones share state.
#[derive(Clone, Default)]
pub(super) struct StrongKeys(Arc<Mutex<HashSet<KeyId>>>);

impl StrongKeys {
    fn note(&self, key: KeyId, role: Role) {
        if role == Role::Verifier {
            return;
        }
        let mut logged = self.0.lock().expect("no one panics while holding it");
        if logged.len() < STRONG_KEYS_MAX && logged.insert(key) {
            let role = role.as_str();
            tracing::warn!(
                %key, role,
                "a subscriber to revocations uses a server key that can do more than verify tokens: `sessiond server-key create --role \
                 verifier` creates a lesser one, `sessiond server-key narrow` narrows this one (logged once per key)"
            );
        }
    }
}
