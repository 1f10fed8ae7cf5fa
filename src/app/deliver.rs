//! Telling others that sessions have ended: takes what was queued with each end, sends it, and writes down what came of it.
//!
//! Every replica does so at once. Whoever takes a delivery has it for [`LOST_AFTER`]; when nothing more is heard of it by
//! then, another one takes it. So a receiver may be told twice, under the same id, and is never not told.

use std::collections::HashMap;
use std::time::Duration;

use bytes::Bytes;
use secrecy::ExposeSecret as _;
use secrecy::SecretString;
use tokio::task::Id;
use tokio::task::JoinError;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio::time::MissedTickBehavior;
use tokio::time::interval;
use tokio::time::sleep;
use uuid::Uuid;

use super::App;
use super::KeyCache;
use super::KeyError;
use crate::clock;
use crate::clock::Clock;
use crate::outbound::Answer;
use crate::outbound::Message;
use crate::outbound::Outbound;
use crate::outbound::Target;
use crate::session::backchannel;
use crate::session::backchannel::Fate;
use crate::session::backchannel::Kind;
use crate::session::backchannel::Outcome;
use crate::store;
use crate::store::Claim;
use crate::store::Due;
use crate::store::EndpointPlace;
use crate::store::Store;
use crate::telemetry::Metrics;
use crate::telemetry::chain;
use crate::token::access::Issuer;
use crate::token::event::Notice;
use crate::token::event::Subject;

/// How long a delivery that was taken is left to whoever took it: much longer than an attempt and what is written of it.
pub const LOST_AFTER: Duration = Duration::from_secs(60);

/// The most attempts under way in one process.
const ATTEMPTS_MAX: usize = 64;

/// The most of them at one endpoint: one that answers slowly leaves room for the others.
const ATTEMPTS_EACH_MAX: usize = 8;

/// How often there is a look for what other processes have queued, and for what is due again.
const POLL_INTERVAL: Duration = Duration::from_secs(1);

/// How often what waits is counted.
const COUNT_INTERVAL: Duration = Duration::from_secs(15);

/// As many are counted for each endpoint.
const COUNT_EACH_MAX: i64 = 10_000;

/// Tells others. Clones are one and the same.
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
    /// Prepares to tell others what happens to the sessions of this service.
    pub fn new(app: &App, outbound: Outbound, metrics: Metrics) -> Self {
        let App { store, keys, issuer, clock, .. } = app.clone();
        Self { store, keys, issuer, clock, outbound, metrics }
    }

    /// Delivers what is due, for as long as it is let. What is under way when it is stopped is cut off.
    pub async fn run(self) {
        tokio::join!(self.clone().attempt_all(), self.count_all());
    }

    async fn attempt_all(self) {
        let (mut attempts, mut endpoints, mut after) =
            (JoinSet::new(), HashMap::<Id, Uuid>::new(), EndpointPlace::default());
        loop {
            let room = ATTEMPTS_MAX - attempts.len();
            let under_way: Vec<Uuid> = endpoints.values().copied().collect();
            let from_start = after == EndpointPlace::default();
            let taken = if room == 0 { vec![] } else { self.take(&after, under_way, room).await };
            let was_cut_short = taken.len() == room;
            // From one endpoint to the next, and round again: those at the end of the alphabet have their turn.
            match taken.iter().map(Due::place).max() {
                Some(last) if was_cut_short => after = last,
                Some(_) | None if room > 0 => after = EndpointPlace::default(),
                Some(_) | None => {}
            }
            for due in taken {
                let endpoint = due.endpoint;
                let deliverer = self.clone();
                endpoints.insert(attempts.spawn(async move { deliverer.attempt(due).await }).id(), endpoint);
            }
            if !was_cut_short && !from_start {
                continue;
            }
            let each = |endpoint: &Uuid| endpoints.values().filter(|other| *other == endpoint).count();
            let may_have_left_some = was_cut_short || endpoints.values().any(|one| each(one) >= ATTEMPTS_EACH_MAX);
            tokio::select! {
                () = self.store.delivery_queued(), if room > 0 => {}
                () = sleep(POLL_INTERVAL) => {}
                Some(ended) = attempts.join_next_with_id(), if may_have_left_some => forget(&mut endpoints, ended),
            }
            while let Some(ended) = attempts.try_join_next_with_id() {
                forget(&mut endpoints, ended);
            }
        }
    }

    async fn take(&self, after: &EndpointPlace, under_way: Vec<Uuid>, rows_max: usize) -> Vec<Due> {
        let now = self.clock.now();
        let (after, lost_at) = (after.clone(), now + LOST_AFTER);
        let claim = Claim { after, under_way, each_max: ATTEMPTS_EACH_MAX, rows_max, now, lost_at };
        self.store.deliveries_claim(claim).await.unwrap_or_else(|error| {
            tracing::warn!(error = chain(&error), "cannot look for what others are to be told");
            vec![]
        })
    }

    /// Makes one attempt, and writes down what came of it.
    async fn attempt(&self, due: Due) {
        let refused = |why: &str| (Outcome::Refused(why.to_owned()), None);
        let outcome = match subject(&due) {
            _ if due.is_removed => refused("the endpoint was removed"),
            _ if backchannel::is_too_late(due.queued_at, self.clock.now()) => refused("not delivered in time"),
            Some(subject) => self.send(&due, subject).await,
            None => refused("its user was erased"),
        };
        if let Err(error) = self.write_down(&due, outcome).await {
            // Nothing is lost: it is tried again once the attempt counts as lost.
            tracing::warn!(delivery = %due.id, error = chain(&error), "what others were told was not written down");
        }
    }

    async fn write_down(&self, due: &Due, outcome: (Outcome, Option<Duration>)) -> Result<(), store::Error> {
        let (now, kind) = (self.clock.now(), due.kind.as_str());
        let (fate, error) = match outcome {
            (Outcome::Taken, _) => {
                self.metrics.delivery(kind, "delivered");
                return self.store.delivery_done(due.project.clone(), due.id, now).await;
            }
            (Outcome::Failed(error), asked) => {
                let dice = u32::from_ne_bytes(clock::random());
                (backchannel::after_failure(due.attempt, due.queued_at, now, asked, dice), error)
            }
            (Outcome::Refused(error), _) => (Fate::Dead, error),
        };
        let (project, endpoint, delivery) = (due.project.as_str(), due.endpoint, due.id);
        match fate {
            Fate::Retried(_) => {
                self.metrics.delivery(kind, "retried");
                tracing::debug!(project, %endpoint, %delivery, error, attempt = due.attempt, "others are not told yet");
            }
            Fate::Dead => {
                self.metrics.delivery(kind, "dead");
                tracing::warn!(project, %endpoint, %delivery, error, attempt = due.attempt, "others were not told");
            }
        }
        self.store.delivery_failed(due, fate, error, now).await
    }

    /// Sends a delivery, and tells what came of it and how long the receiver asks to be left alone.
    async fn send(&self, due: &Due, subject: Subject<'_>) -> (Outcome, Option<Duration>) {
        let target = match Target::parse(&due.url, self.outbound.permitted()) {
            Ok(target) => target,
            // It was checked when it was added; this server permits less.
            Err(error) => return (Outcome::Failed(error.to_string()), None),
        };
        let message = match self.message(due, subject).await {
            Ok(message) => message,
            Err(error) => {
                tracing::error!(error = chain(&error), "what others are to be told cannot be signed");
                return (Outcome::Failed("it cannot be signed".to_owned()), None);
            }
        };
        let started = Instant::now();
        let answer = self.outbound.post(&target, message).await;
        self.metrics.delivery_attempt(due.kind.as_str(), started.elapsed());
        match answer {
            Ok(Answer { status, retry_after, body }) => {
                let asked = retry_after.and_then(|text| backchannel::retry_after(&text, self.clock.now()));
                (backchannel::judge(due.kind, status, &body), asked)
            }
            Err(failure) => (Outcome::Failed(failure.to_string()), None),
        }
    }

    /// What to send: a form for a logout token (OpenID Connect Back-Channel Logout 1.0 §2.5), the token alone for an event
    /// (RFC 8935 §2.1). Signed anew for each attempt, for a logout token soon expires.
    async fn message(&self, due: &Due, subject: Subject<'_>) -> Result<Message, super::Error> {
        let token = self.token(due, subject).await?;
        let token = token.expose_secret();
        // A form may be answered with anything; what is asked for is what RFC 8935 has.
        let accept = "application/json";
        Ok(match due.kind {
            // A JWT has no character that a form would have to escape.
            Kind::Logout => Message {
                content_type: "application/x-www-form-urlencoded",
                accept,
                body: Bytes::from(format!("logout_token={token}")),
            },
            Kind::Caep => {
                Message { content_type: "application/secevent+jwt", accept, body: Bytes::from(token.to_owned()) }
            }
        })
    }

    async fn token(&self, due: &Due, subject: Subject<'_>) -> Result<SecretString, super::Error> {
        let now = self.clock.now();
        let snapshot = self.keys.with(|snapshot| snapshot.signs_for(&due.project, now).is_ok()).await?;
        let key = snapshot.signs_for(&due.project, now)?;
        let (issuer, id, transaction) =
            (self.issuer.of(due.project.as_str()), due.id.to_string(), due.revocation.to_string());
        let notice = Notice {
            issuer: &issuer,
            audience: &due.audience,
            id: &id,
            transaction: &transaction,
            subject,
            ended_at: due.at,
            initiator: backchannel::initiator(due.by),
            reason: backchannel::told_reason(due.reason),
        };
        let signed = match due.kind {
            Kind::Logout => key.sign_logout(&notice, now),
            Kind::Caep => key.sign_revoked(&notice, now),
        };
        Ok(signed.map_err(KeyError::from)?)
    }

    async fn count_all(&self) {
        let mut ticks = interval(COUNT_INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            match self.store.deliveries_count(COUNT_EACH_MAX).await {
                Ok(counts) => {
                    for kind in Kind::ALL {
                        let count = counts.iter().find(|(other, _)| *other == kind).map_or(0, |(_, count)| *count);
                        self.metrics.deliveries_pending(kind.as_str(), count);
                    }
                }
                Err(error) => tracing::debug!(error = chain(&error), "what others are to be told was not counted"),
            }
        }
    }
}

/// What has ended; `None` when neither a session nor a user is named any more.
fn subject(due: &Due) -> Option<Subject<'_>> {
    match (due.session, due.user.as_deref()) {
        (Some(session), user) => Some(Subject::Session { session, user }),
        (None, user) => user.map(Subject::User),
    }
}

/// An attempt has ended; where it panicked, its delivery is tried again once it counts as lost.
fn forget(endpoints: &mut HashMap<Id, Uuid>, ended: Result<(Id, ()), JoinError>) {
    let id = ended.map_or_else(|error| error.id(), |(id, ())| id);
    endpoints.remove(&id);
}
