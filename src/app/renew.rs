//! Refreshes sessions in place, for proxies: a page that loads with an expired access token and a good refresh token.
//!
//! The requests of one page arrive together, all with the same cookies. They share one refresh: a request that comes while it
//! is in progress, or shortly after, gets its result. Without that, each would be a transaction of its own, and a page with
//! very many parts would exceed the bound on repeats. Between replicas, the refresh rule gives all of them the same successor
//! anyway.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::Mutex;
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use futures_util::future::Shared;
use secrecy::ExposeSecret as _;

use super::AccessToken;
use super::App;
use super::Client;
use super::ClientAuth;
use super::Error;
use super::Grant;
use crate::store::Role;
use crate::telemetry::request;
use sessiond_core::clock::Timestamp;
use sessiond_core::id::ProjectId;
use sessiond_core::session::Origin;
use sessiond_core::session::Refusal;
use sessiond_core::session::origin::network;
use sessiond_core::token::refresh::RefreshToken;
use sessiond_core::token::verified::VerifiedToken;

/// How long a result is kept for requests that come after it, at most; never longer than the project's grace.
const KEPT_MAX: Duration = Duration::from_secs(5);

/// The most results that are kept. Beyond, requests refresh on their own.
const RESULTS_MAX: usize = 4_096;

/// A valid access token, and the new tokens if the session was refreshed for it.
pub struct Renewed {
    /// The token.
    pub token: VerifiedToken,
    /// The new tokens.
    pub grant: Option<Arc<Grant>>,
}

/// The refresh token as presented, and where from: a copy that is presented from elsewhere is for the refresh rule to judge.
type Key = (String, Option<IpAddr>, Option<String>);

type Refreshing = Shared<BoxFuture<'static, Result<Arc<Grant>, Error>>>;

/// A refresh that is under way, or has just finished.
#[derive(Clone)]
struct Entry {
    refreshing: Refreshing,
    /// Until when others may have its result.
    until: Timestamp,
}

/// The refreshes that requests share. Cheap to clone; clones share state. Has no `Debug`: it holds tokens.
#[derive(Clone, Default)]
pub(super) struct SharedRefreshes(Arc<Mutex<Entries>>);

#[derive(Default)]
struct Entries {
    entries: HashMap<Key, Entry>,
    /// When those that cannot be joined any more are removed next.
    purge_at: Option<Timestamp>,
}

impl App {
    /// Verifies the access token of a request to one project; if there is none or it can no longer be used, refreshes the session.
    ///
    /// # Errors
    ///
    /// As [`App::verify`]. If the refresh is refused too, the refusal is that of the access token; without one it is
    /// [`Refusal::SessionRevoked`], whatever is wrong with the refresh token.
    pub async fn verify_or_renew(
        &self,
        project: &ProjectId,
        access: Option<&AccessToken>,
        refresh: Option<&str>,
        origin: &Origin,
    ) -> Result<Renewed, Error> {
        let refusal = match self.verify(project, access).await {
            Ok(token) => return Ok(Renewed { token, grant: None }),
            Err(Error::Refused(refusal)) => refusal,
            Err(failure) => return Err(failure),
        };
        let is_spent = matches!(
            refusal,
            Refusal::CredentialsMissing
                | Refusal::AccessTokenExpired { .. }
                | Refusal::AccessTokenSuperseded
                | Refusal::UnparsableAccessToken
        );
        let Some(presented) = refresh.filter(|_| is_spent) else { return Err(refusal.into()) };
        let renewed = match self.renew(project, presented, origin).await {
            Ok(grant) => match self.verify_grant(project, grant).await {
                // The result of a refresh that others began before the token was superseded: refresh once more.
                Err(Error::Refused(Refusal::AccessTokenSuperseded)) => {
                    self.renewals.forget(&renewal_key(presented, origin));
                    match self.renew(project, presented, origin).await {
                        Ok(grant) => self.verify_grant(project, grant).await,
                        Err(error) => Err(error),
                    }
                }
                verified => verified,
            },
            Err(error) => Err(error),
        };
        match renewed {
            Err(Error::Refused(Refusal::RefreshTokenNotFoundOrExpired)) => Err(match refusal {
                Refusal::CredentialsMissing => Refusal::SessionRevoked.into(),
                refusal => refusal.into(),
            }),
            outcome => outcome,
        }
    }

    /// Verifies the access token of a refresh, in full: the session may have ended since.
    async fn verify_grant(&self, project: &ProjectId, grant: Arc<Grant>) -> Result<Renewed, Error> {
        let access = AccessToken(grant.access_token.expose_secret().to_owned());
        let token = self.verify(project, Some(&access)).await?;
        Ok(Renewed { token, grant: Some(grant) })
    }

    /// Refreshes the session of a refresh token of the project, together with others that present the same one from the same place.
    async fn renew(&self, project: &ProjectId, presented: &str, origin: &Origin) -> Result<Arc<Grant>, Error> {
        let key = renewal_key(presented, origin);
        let refreshing =
            self.renewals.join(key.clone(), self.clock.now(), || self.begin_renewal(project, presented, origin));
        let outcome = refreshing.await;
        if outcome.is_err() {
            self.renewals.forget(&key);
        }
        outcome
    }

    /// On a task of its own: a request that is cancelled must not stop the others.
    fn begin_renewal(&self, project: &ProjectId, presented: &str, origin: &Origin) -> Entry {
        let (app, origin, token) = (self.clone(), origin.clone(), RefreshToken::parse(presented));
        let client = Client { project: project.clone(), auth: ClientAuth::Unchecked, role: Role::Service };
        let work = async move { app.refresh_session(token, Some(client), origin).await.map(Arc::new) };
        let task = tokio::spawn(request::handle(request::request_id(), request::current_record(), work));
        let grace = self.keys.snapshot().policy(project).map_or(Duration::ZERO, |policy| policy.refresh_grace);
        // It has panicked, or the server stops: try again.
        let refreshing = async move { task.await.unwrap_or(Err(Error::FeedInterrupted)) };
        Entry { refreshing: refreshing.boxed().shared(), until: self.clock.now() + grace.min(KEPT_MAX) }
    }
}

fn renewal_key(presented: &str, origin: &Origin) -> Key {
    (presented.to_owned(), origin.ip.map(|ip| network(ip).addr()), origin.user_agent.clone())
}

impl SharedRefreshes {
    /// The refresh that is under way or has just finished, or a new one.
    fn join(&self, key: Key, now: Timestamp, begin: impl FnOnce() -> Entry) -> Refreshing {
        let Entries { entries, purge_at } = &mut *self.0.lock().expect("no one panics while holding it");
        if let Some(entry) = entries.get(&key).filter(|entry| entry.can_be_joined(now)) {
            return entry.refreshing.clone();
        }
        if purge_at.is_none_or(|at| now >= at) {
            entries.retain(|_, entry| entry.can_be_joined(now));
            *purge_at = Some(now + KEPT_MAX);
        }
        let entry = begin();
        let refreshing = entry.refreshing.clone();
        if entries.len() < RESULTS_MAX {
            entries.insert(key, entry);
        }
        refreshing
    }

    fn forget(&self, key: &Key) {
        self.0.lock().expect("no one panics while holding it").entries.remove(key);
    }
}

impl Entry {
    fn can_be_joined(&self, now: Timestamp) -> bool {
        now < self.until || self.refreshing.peek().is_none()
    }
}
