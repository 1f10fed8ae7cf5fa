//! Back-channel delivery: claims the logout tokens and CAEP events that were queued with each revocation, sends them, and
//! records the outcome.
//!
//! Every replica delivers. A delivery belongs to the replica that claimed it for [`LOST_AFTER`]; if no outcome is recorded by
//! then, another replica claims it. So a receiver may get it twice, under the same id, but does not miss it.

use std::collections::HashMap;
use std::hash::Hash;
use std::time::Duration;

use bytes::Bytes;
use secrecy::ExposeSecret as _;
use secrecy::SecretString;
use tokio::task::Id;
use tokio::task::JoinError;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio::time::sleep;
use uuid::Uuid;

use super::App;
use super::KeyCache;
use super::KeyError;
use crate::every::every;
use crate::outbound::Outbound;
use crate::outbound::OutboundAnswer;
use crate::outbound::OutboundMessage;
use crate::outbound::OutboundUrl;
use crate::store;
use crate::store::DeliveryClaim;
use crate::store::DueDelivery;
use crate::store::EndpointPosition;
use crate::store::Store;
use crate::telemetry::Metrics;
use crate::telemetry::chain;
use sessiond_core::clock;
use sessiond_core::clock::Clock;
use sessiond_core::session::backchannel;
use sessiond_core::session::backchannel::DeliveryOutcome;
use sessiond_core::session::backchannel::EndpointKind;
use sessiond_core::session::backchannel::RetryDecision;
use sessiond_core::token::access::Issuer;
use sessiond_core::token::event::RevocationNotice;
use sessiond_core::token::event::Subject;

/// How long a claimed delivery belongs to the replica that claimed it: much longer than an attempt and its record take.
pub const LOST_AFTER: Duration = Duration::from_secs(60);

/// The most attempts in progress in one process.
const ATTEMPTS_MAX: usize = 64;

/// The most of them at one endpoint: one that answers slowly leaves room for the others.
const ATTEMPTS_EACH_MAX: usize = 8;

/// How often deliveries are claimed that other processes have queued, or that are due again.
const POLL_INTERVAL: Duration = Duration::from_secs(1);

/// How often pending deliveries are counted.
const COUNT_INTERVAL: Duration = Duration::from_secs(15);

/// The most that are counted for each endpoint.
const COUNT_EACH_MAX: i64 = 10_000;

/// Delivers logout tokens and CAEP events to back-channel endpoints. Cheap to clone; clones share state.
#[derive(Clone)]
pub struct Deliverer {
    store: Store,
    keys: KeyCache,
    issuer: Issuer,
    clock: Clock,
    outbound: Outbound,
    metrics: Metrics,
}

impl Deliverer {
    /// Prepares to deliver for the sessions of this service.
    pub fn new(app: &App, outbound: Outbound, metrics: Metrics) -> Self {
        let App { store, keys, issuer, clock, .. } = app.clone();
        Self { store, keys, issuer, clock, outbound, metrics }
    }

    /// Delivers what is due. Does not return; dropped, it cuts off the attempts in progress.
    pub async fn run(self) {
        tokio::join!(self.clone().attempt_all(), self.count_all());
    }

    async fn attempt_all(self) {
        let (mut tasks, mut attempts) = (JoinSet::new(), Attempts::default());
        loop {
            let room = attempts.room();
            let due = self.claim(&attempts).await;
            let claimed = attempts.advance(room, due.len(), due.iter().map(DueDelivery::place).max());
            for due in due {
                let (endpoint, deliverer) = (due.endpoint, self.clone());
                let task = tasks.spawn(async move { deliverer.attempt(due).await });
                attempts.begin(task.id(), endpoint);
            }
            if claimed != Claimed::RestOfRound {
                let is_waiting = attempts.are_blocking(claimed);
                tokio::select! {
                    () = self.store.delivery_queued(), if room > 0 => {}
                    () = sleep(POLL_INTERVAL) => {}
                    Some(ended) = tasks.join_next_with_id(), if is_waiting => attempts.end(id_of(ended)),
                }
                while let Some(ended) = tasks.try_join_next_with_id() {
                    attempts.end(id_of(ended));
                }
            }
        }
    }

    async fn claim(&self, attempts: &Attempts<Id>) -> Vec<DueDelivery> {
        let rows_max = attempts.room();
        if rows_max == 0 {
            return vec![];
        }
        let now = self.clock.now();
        let (after, under_way) = (attempts.after.clone(), attempts.endpoints.values().copied().collect());
        let claim =
            DeliveryClaim { after, under_way, each_max: ATTEMPTS_EACH_MAX, rows_max, now, lost_at: now + LOST_AFTER };
        self.store.deliveries_claim(claim).await.unwrap_or_else(|error| {
            tracing::warn!(error = chain(&error), "cannot read the due back-channel deliveries");
            vec![]
        })
    }

    /// Makes one attempt, and records its outcome.
    async fn attempt(&self, due: DueDelivery) {
        let refused = |why: &str| (DeliveryOutcome::Refused(why.to_owned()), None);
        let outcome = match subject(&due) {
            _ if due.is_removed => refused("the endpoint was removed"),
            _ if backchannel::is_expired(due.queued_at, self.clock.now()) => refused("not delivered in time"),
            Some(subject) => self.send(&due, subject).await,
            None => refused("its user was erased"),
        };
        if let Err(error) = self.record(&due, outcome).await {
            // Nothing is lost: the delivery is repeated once the attempt counts as lost.
            tracing::warn!(delivery = %due.id, error = chain(&error), "cannot record the outcome of a back-channel delivery");
        }
    }

    async fn record(
        &self,
        due: &DueDelivery,
        outcome: (DeliveryOutcome, Option<Duration>),
    ) -> Result<(), store::Error> {
        let (now, kind) = (self.clock.now(), due.kind.as_str());
        let (fate, error) = match outcome {
            (DeliveryOutcome::Accepted, _) => {
                self.metrics.delivery(kind, "delivered");
                return self.store.delivery_done(due, now).await;
            }
            (DeliveryOutcome::Failed(error), asked) => {
                let random = clock::random_u32();
                (backchannel::after_failure(due.attempt, due.queued_at, now, asked, random), error)
            }
            (DeliveryOutcome::Refused(error), _) => (RetryDecision::Dead, error),
        };
        let (project, endpoint, delivery) = (due.project.as_str(), due.endpoint, due.id);
        match fate {
            RetryDecision::RetryAt(_) => {
                self.metrics.delivery(kind, "retried");
                tracing::debug!(project, %endpoint, %delivery, error, attempt = due.attempt, "back-channel delivery postponed");
            }
            RetryDecision::Dead => {
                self.metrics.delivery(kind, "dead");
                tracing::warn!(project, %endpoint, %delivery, error, attempt = due.attempt, "back-channel delivery failed for good");
            }
        }
        self.store.delivery_failed(due, fate, error, now).await
    }

    /// Sends a delivery. Returns the outcome, and how long the receiver asks to wait.
    async fn send(&self, due: &DueDelivery, subject: Subject<'_>) -> (DeliveryOutcome, Option<Duration>) {
        let url = match OutboundUrl::parse(&due.url, self.outbound.permitted()) {
            Ok(url) => url,
            // It was checked when it was added, but this server permits fewer networks.
            Err(error) => return (DeliveryOutcome::Failed(error.to_string()), None),
        };
        let message = match self.message(due, subject).await {
            Ok(message) => message,
            Err(error) => {
                tracing::error!(error = chain(&error), "cannot sign a back-channel delivery");
                return (DeliveryOutcome::Failed("cannot sign the token".to_owned()), None);
            }
        };
        let started = Instant::now();
        let answer = self.outbound.post(&url, message).await;
        self.metrics.delivery_attempt(due.kind.as_str(), started.elapsed());
        match answer {
            Ok(OutboundAnswer { status, retry_after, body }) => {
                let asked = retry_after.and_then(|text| backchannel::retry_after(&text, self.clock.now()));
                (backchannel::classify_answer(due.kind, status, &body), asked)
            }
            Err(failure) => (DeliveryOutcome::Failed(failure.to_string()), None),
        }
    }

    /// What to send: a form for a logout token (OpenID Connect Back-Channel Logout 1.0 §2.5), the token alone for an event
    /// (RFC 8935 §2.1). Signed for each attempt, because a logout token expires soon.
    async fn message(&self, due: &DueDelivery, subject: Subject<'_>) -> Result<OutboundMessage, super::Error> {
        let token = self.token(due, subject).await?;
        let token = token.expose_secret();
        // A logout endpoint may answer with anything; RFC 8935 specifies JSON.
        let accept = "application/json";
        Ok(match due.kind {
            // A JWT has no character that a form would have to escape.
            EndpointKind::Logout => OutboundMessage {
                content_type: "application/x-www-form-urlencoded",
                accept,
                body: Bytes::from(format!("logout_token={token}")),
            },
            EndpointKind::Caep => OutboundMessage {
                content_type: "application/secevent+jwt",
                accept,
                body: Bytes::from(token.to_owned()),
            },
        })
    }

    async fn token(&self, due: &DueDelivery, subject: Subject<'_>) -> Result<SecretString, super::Error> {
        let now = self.clock.now();
        let snapshot = self.keys.with(|snapshot| snapshot.signs_for(&due.project, now).is_ok()).await?;
        let key = snapshot.signs_for(&due.project, now)?;
        let (issuer, id, transaction) =
            (self.issuer.of(due.project.as_str()), due.id.to_string(), due.revocation.to_string());
        let notice = RevocationNotice {
            issuer: &issuer,
            audience: &due.audience,
            id: &id,
            transaction: &transaction,
            subject,
            ended_at: due.at,
            initiator: backchannel::initiator(due.by),
            reason: backchannel::reason_text(due.reason),
        };
        let signed = match due.kind {
            EndpointKind::Logout => key.sign_logout(&notice, now),
            EndpointKind::Caep => key.sign_revoked(&notice, now),
        };
        Ok(signed.map_err(KeyError::from)?)
    }

    async fn count_all(&self) {
        every(COUNT_INTERVAL, || self.count()).await;
    }

    async fn count(&self) {
        match self.store.deliveries_count(COUNT_EACH_MAX).await {
            Ok(counts) => {
                for kind in EndpointKind::ALL {
                    let count = counts.iter().find(|(other, _)| *other == kind).map_or(0, |(_, count)| *count);
                    self.metrics.deliveries_pending(kind.as_str(), count);
                }
            }
            Err(error) => tracing::debug!(error = chain(&error), "cannot count the pending back-channel deliveries"),
        }
    }
}

/// The attempts in progress, and where the next claim begins. `K` identifies an attempt.
///
/// Claims are round-robin over the endpoints, so that the last ones are not starved.
struct Attempts<K> {
    endpoints: HashMap<K, Uuid>,
    after: EndpointPosition,
}

/// How far a claim got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Claimed {
    /// To its limit: more may be due.
    UpToLimit,
    /// To the end of a round that did not begin at the first endpoint: the earlier endpoints are claimed at once.
    RestOfRound,
    /// Everything due, except at endpoints that have [`ATTEMPTS_EACH_MAX`] in progress.
    Everything,
}

impl<K> Default for Attempts<K> {
    fn default() -> Self {
        Self { endpoints: HashMap::new(), after: EndpointPosition::default() }
    }
}

impl<K: Eq + Hash> Attempts<K> {
    /// How many more there may be.
    fn room(&self) -> usize {
        ATTEMPTS_MAX - self.endpoints.len()
    }

    /// Notes that a claim of at most `room` deliveries returned `count`, the last one at `last`.
    fn advance(&mut self, room: usize, count: usize, last: Option<EndpointPosition>) -> Claimed {
        let was_from_start = self.after == EndpointPosition::default();
        let is_at_limit = count == room;
        match last {
            Some(last) if is_at_limit => self.after = last,
            Some(_) | None if room > 0 => self.after = EndpointPosition::default(),
            // Nothing was claimed.
            Some(_) | None => {}
        }
        match (is_at_limit, was_from_start) {
            (true, _) => Claimed::UpToLimit,
            (false, false) => Claimed::RestOfRound,
            (false, true) => Claimed::Everything,
        }
    }

    fn begin(&mut self, attempt: K, endpoint: Uuid) {
        self.endpoints.insert(attempt, endpoint);
    }

    /// Forgets an attempt. One that panicked is repeated once it counts as lost.
    fn end(&mut self, attempt: K) {
        self.endpoints.remove(&attempt);
    }

    /// Whether the end of one attempt may make room for a delivery that is due.
    fn are_blocking(&self, claimed: Claimed) -> bool {
        let at = |endpoint: &Uuid| self.endpoints.values().filter(|other| *other == endpoint).count();
        claimed == Claimed::UpToLimit || self.endpoints.values().any(|endpoint| at(endpoint) >= ATTEMPTS_EACH_MAX)
    }
}

fn id_of(ended: Result<(Id, ()), JoinError>) -> Id {
    ended.map_or_else(|error| error.id(), |(id, ())| id)
}

/// The subject of a delivery; `None` if it names neither a session nor a user any more.
fn subject(due: &DueDelivery) -> Option<Subject<'_>> {
    match (due.session, due.user.as_deref()) {
        (Some(session), user) => Some(Subject::Session { session, user }),
        (None, user) => user.map(Subject::User),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ENDPOINT: Uuid = Uuid::from_u128(1);

    fn place(endpoint: u128) -> EndpointPosition {
        EndpointPosition::of("demo", Uuid::from_u128(endpoint))
    }

    #[test]
    fn claims_are_round_robin_over_the_endpoints() {
        let mut attempts = Attempts::<u32>::default();
        assert_eq!(attempts.advance(4, 4, Some(place(4))), Claimed::UpToLimit);
        assert_eq!(attempts.after, place(4), "the next claim begins there");
        assert_eq!(attempts.advance(4, 4, Some(place(7))), Claimed::UpToLimit);
        assert_eq!(
            attempts.advance(4, 1, Some(place(9))),
            Claimed::RestOfRound,
            "the earlier endpoints are claimed next"
        );
        assert_eq!(attempts.after, EndpointPosition::default());
        assert_eq!(attempts.advance(4, 0, None), Claimed::Everything);
    }

    #[test]
    fn without_room_the_round_does_not_advance() {
        let mut attempts = Attempts::default();
        assert_eq!(attempts.advance(attempts.room(), ATTEMPTS_MAX, Some(place(4))), Claimed::UpToLimit);
        (0..ATTEMPTS_MAX)
            .for_each(|attempt| attempts.begin(attempt, Uuid::from_u128(u128::try_from(attempt).expect("small"))));
        assert_eq!(attempts.room(), 0);
        assert_eq!(attempts.advance(0, 0, None), Claimed::UpToLimit);
        assert_eq!(attempts.after, place(4));
        attempts.end(3);
        attempts.end(3);
        assert_eq!(attempts.room(), 1);
    }

    #[test]
    fn a_finished_attempt_is_awaited_only_if_it_makes_room() {
        let mut attempts = Attempts::default();
        (1..ATTEMPTS_EACH_MAX).for_each(|attempt| attempts.begin(attempt, ENDPOINT));
        assert!(!attempts.are_blocking(Claimed::Everything), "there is room at this endpoint, and nothing is due");
        assert!(attempts.are_blocking(Claimed::UpToLimit));
        attempts.begin(0, ENDPOINT);
        assert!(attempts.are_blocking(Claimed::Everything), "what is due at this endpoint was not claimed");
        attempts.end(0);
        assert!(!attempts.are_blocking(Claimed::Everything));
    }
}
