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

use secrecy::ExposeSecret as _;
use tokio::sync::watch;

use super::AccessToken;
use super::App;
use super::Client;
use super::ClientAuth;
use super::Error;
use super::Grant;
use super::refresh::knows;
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

/// The project, the refresh token as presented, and where from: a copy that is presented from elsewhere is for the refresh rule to
/// judge.
type Key = (ProjectId, String, Option<IpAddr>, Option<String>);

type Outcome = Result<Arc<Grant>, Error>;

/// Where requests get the result from: `None` while the refresh is in progress.
type SharedOutcome = watch::Receiver<Option<Outcome>>;

/// A refresh that is in progress, or has just finished.
struct Entry {
    /// Set by its own task, whether or not a request still waits for it.
    outcome: SharedOutcome,
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
        // On the heap: few requests need it, and the future of every request would be twice as large.
        match Box::pin(self.renew_and_verify(project, presented, origin)).await {
            Err(Error::Refused(Refusal::RefreshTokenNotFoundOrExpired)) => Err(match refusal {
                Refusal::CredentialsMissing => Refusal::SessionRevoked.into(),
                refusal => refusal.into(),
            }),
            outcome => outcome,
        }
    }

    async fn renew_and_verify(&self, project: &ProjectId, presented: &str, origin: &Origin) -> Result<Renewed, Error> {
        let (shared, grant) = self.renew(project, presented, origin, None).await?;
        match self.verify_grant(project, grant).await {
            // The result of a refresh that others began: its token was superseded since, or has expired, if tokens live for seconds.
            Err(Error::Refused(Refusal::AccessTokenSuperseded | Refusal::AccessTokenExpired { .. })) => {
                let (_, grant) = self.renew(project, presented, origin, Some(&shared)).await?;
                self.verify_grant(project, grant).await
            }
            verified => verified,
        }
    }

    /// Verifies the access token of a refresh, in full: the session may have ended since.
    async fn verify_grant(&self, project: &ProjectId, grant: Arc<Grant>) -> Result<Renewed, Error> {
        let access = AccessToken(grant.access_token.expose_secret().to_owned());
        let token = self.verify(project, Some(&access)).await?;
        Ok(Renewed { token, grant: Some(grant) })
    }

    /// Refreshes the session of a refresh token of the project, together with others that present the same one from the same place.
    /// Does not take the result that is out of date. Returns where the result came from, too.
    async fn renew(
        &self,
        project: &ProjectId,
        presented: &str,
        origin: &Origin,
        out_of_date: Option<&SharedOutcome>,
    ) -> Result<(SharedOutcome, Arc<Grant>), Error> {
        let token = RefreshToken::parse(presented).ok_or(Refusal::RefreshTokenNotFoundOrExpired)?;
        // A made-up token takes no place among the results.
        let snapshot = self.keys.find_for_proxy(token.key(), knows(&token)).await?;
        self.genuine_refresh_key(&snapshot, &token)?;
        let key = renewal_key(project, presented, origin);
        let begin = || self.begin_renewal(key.clone(), token, origin);
        let mut shared = self.renewals.join(&key, self.clock.now(), out_of_date, begin);
        let finished = shared.wait_for(Option::is_some).await;
        // Without one, its task has panicked, or the server stops: try again.
        let outcome = finished.ok().and_then(|outcome| outcome.clone()).unwrap_or(Err(Error::FeedInterrupted));
        outcome.map(|grant| (shared, grant))
    }

    /// On a task of its own: a request that is cancelled must not stop the others.
    fn begin_renewal(&self, key: Key, token: RefreshToken, origin: &Origin) -> Entry {
        let (app, origin, project) = (self.clone(), origin.clone(), key.0.clone());
        let client = Client { project: project.clone(), auth: ClientAuth::Unchecked, role: Role::Service };
        let (sender, outcome) = watch::channel(None);
        let work = async move {
            let done = app.refresh_session(Some(token), Some(client), origin).await.map(Arc::new);
            if done.is_err() {
                // A later request tries again.
                app.renewals.forget(&key);
            }
            sender.send_replace(Some(done));
        };
        tokio::spawn(Box::pin(request::handle(request::request_id(), request::current_record(), work)));
        let grace = self.keys.snapshot().policy(&project).map_or(Duration::ZERO, |policy| policy.refresh_grace);
        Entry { outcome, until: self.clock.now() + grace.min(KEPT_MAX) }
    }
}

fn renewal_key(project: &ProjectId, presented: &str, origin: &Origin) -> Key {
    (project.clone(), presented.to_owned(), origin.ip.map(|ip| network(ip).addr()), origin.user_agent.clone())
}

impl SharedRefreshes {
    /// The refresh that is in progress or has just finished, unless it is the one that is out of date; or a new one.
    fn join(
        &self,
        key: &Key,
        now: Timestamp,
        out_of_date: Option<&SharedOutcome>,
        begin: impl FnOnce() -> Entry,
    ) -> SharedOutcome {
        let Entries { entries, purge_at } = &mut *self.0.lock().expect("no one panics while holding it");
        let is_current = |entry: &&Entry| out_of_date.is_none_or(|other| !entry.outcome.same_channel(other));
        if let Some(entry) = entries.get(key).filter(|entry| entry.can_be_joined(now)).filter(is_current) {
            return entry.outcome.clone();
        }
        if purge_at.is_none_or(|at| now >= at) {
            entries.retain(|_, entry| entry.can_be_joined(now));
            *purge_at = Some(now + KEPT_MAX);
        }
        let entry = begin();
        let outcome = entry.outcome.clone();
        if entries.len() < RESULTS_MAX || entries.contains_key(key) {
            entries.insert(key.clone(), entry);
        }
        outcome
    }

    fn forget(&self, key: &Key) {
        self.0.lock().expect("no one panics while holding it").entries.remove(key);
    }
}

impl Entry {
    fn can_be_joined(&self, now: Timestamp) -> bool {
        match &*self.outcome.borrow() {
            // Its task ends within the time limits of the database, and drops the sender if it panics.
            None => self.outcome.has_changed().is_ok(),
            Some(outcome) => outcome.is_ok() && now < self.until,
        }
    }
}
